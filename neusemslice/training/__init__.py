"""Training of a whole network, or of some of its neurons while the others stay as they are."""

from neusemslice.training.freezing import Trainable as Trainable
from neusemslice.training.loop import train as train
from neusemslice.training.losses import Batch as Batch
from neusemslice.training.losses import Loss as Loss
from neusemslice.training.losses import cross_entropy as cross_entropy
from neusemslice.training.losses import distillation as distillation
from neusemslice.training.losses import logits_of as logits_of
from neusemslice.training.record import EpochRecord as EpochRecord
from neusemslice.training.record import Training as Training
from neusemslice.training.samples import InMemory as InMemory
from neusemslice.training.samples import Joined as Joined
from neusemslice.training.samples import Samples as Samples
from neusemslice.training.samples import Subset as Subset
from neusemslice.training.samples import as_samples as as_samples
from neusemslice.training.samples import batches_of as batches_of

"""Weight pruning: zeros in a network that keeps its shape, in iterations, with fine-tuning between them if asked."""

from neusemslice.pruning.iterating import prune_weights as prune_weights
from neusemslice.pruning.results import Pruned as Pruned
from neusemslice.pruning.results import PruningIteration as PruningIteration
from neusemslice.pruning.results import PruningReport as PruningReport

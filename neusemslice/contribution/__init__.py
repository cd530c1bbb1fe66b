"""How much each neuron contributes to each category."""

from neusemslice.contribution.deeplift import deeplift_contributions as deeplift_contributions
from neusemslice.contribution.metrics import METRICS as METRICS
from neusemslice.contribution.scoring import Contributions as Contributions
from neusemslice.contribution.scoring import score_neurons as score_neurons

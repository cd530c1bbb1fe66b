"""How much each neuron contributes to each category."""

from neusemslice.contribution.contributions import Contributions as Contributions
from neusemslice.contribution.deeplift import deeplift_contributions as deeplift_contributions
from neusemslice.contribution.measuring import measure_many as measure_many
from neusemslice.contribution.measuring import measure_statistics as measure_statistics
from neusemslice.contribution.metrics import METRICS as METRICS
from neusemslice.contribution.scoring import score_many as score_many
from neusemslice.contribution.scoring import score_neurons as score_neurons
from neusemslice.contribution.statistics import Statistics as Statistics

"""What a cut took from a network, given back by the layers that are left: in closed form, without training."""

from neusemslice.reconstruction.report import LayerFit as LayerFit
from neusemslice.reconstruction.report import ReconstructionReport as ReconstructionReport
from neusemslice.reconstruction.sweep import reconstruct as reconstruct

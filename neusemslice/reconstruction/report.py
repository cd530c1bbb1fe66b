"""What a reconstruction did."""

from dataclasses import dataclass

from neusemslice.config import Reconstruction


@dataclass(frozen=True)
class LayerFit:
    """How far one layer's outputs are from the original network's, where both have them.

    Attributes:
        before, after: |original - smaller network| over |original - its mean|, with the layer as it was cut and as it
            is now, both reading what the layers before it give now; `after` on samples that had no part in the fit,
            but for norms, whose statistics are of all samples.
        penalty: the ridge penalty that was chosen, relative to the inputs' mean variance; None if no weight was fitted.
    """

    before: float
    after: float
    penalty: float | None = None


@dataclass(frozen=True)
class ReconstructionReport:
    """What was adjusted after a cut.

    Attributes:
        level: what was asked for.
        samples: calibration samples that were used.
        samples_given: how many there were; more than were used if values of all of them would not have fit the memory.
        layers: the layers that were adjusted, in the order in which they were. Whatever reads only values that no
            removal changed is left as it is.
    """

    level: Reconstruction
    samples: int
    samples_given: int
    layers: dict[str, LayerFit]

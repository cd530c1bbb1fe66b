"""What a job's spec says of the analysis that it rests on."""

from app.jobs.specs.readapt import ReadaptSpec
from app.jobs.specs.restructure import RestructureSpec
from app.jobs.specs.sharding import ShardSpec
from app.jobs.specs.slice import SliceSpec
from app.jobs.specs.slicing_params import SlicingParams


def analysis_of(spec: object) -> SlicingParams | None:
    """How a job analyses its `model_id` on the train split of its `dataset_id`; None if it does not."""
    match spec:
        case SliceSpec(slicing=slicing) | RestructureSpec(slicing=slicing) | ShardSpec(slicing=slicing):
            return slicing
        case ReadaptSpec():
            return spec.analysis
    return None


def holds_out(slicing: SlicingParams) -> bool:
    """Whether a part of the train split, drawn with the job's seed, is kept out of the analysis to measure on."""
    return slicing.max_accuracy_drop is not None

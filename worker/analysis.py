"""How jobs find the critical neurons of a model."""

from app.jobs.specs import RestructureSpec, SliceSpec, SlicingParams
from neusemslice import ModelSlice, SliceableModel, slice_model
from neusemslice.data import Dataset
from neusemslice.errors import DatasetError
from worker.assignment import Assignment

VALIDATION_SHARE = 0.1


def analyse(
    assignment: Assignment[SliceSpec] | Assignment[RestructureSpec],
    model: SliceableModel,
    dataset: Dataset,
    slicing: SlicingParams,
) -> ModelSlice:
    """Slice on the train split; where accuracy is to be held, a part of it is kept aside to measure that on."""
    spec, validation = assignment.spec, None
    config = slicing.to_config(seed=spec.seed)
    if config.max_accuracy_drop is None:
        data = dataset.batches("train", spec.batch_size, limit_per_category=spec.limit_per_category)
    else:
        data, validation = dataset.hold_out(
            VALIDATION_SHARE, spec.batch_size, seed=spec.seed, limit_per_category=spec.limit_per_category
        )
    try:
        return slice_model(
            model,
            data,
            config,
            validation=validation,
            branches=spec.branches if isinstance(spec, RestructureSpec) else "union",
            on_progress=assignment.on_progress,
            should_stop=assignment.should_stop,
        )
    except DatasetError as error:
        if validation is None:
            raise
        kept_aside = "A tenth of each category's samples, at least one, is held out to measure max_accuracy_drop on."
        raise DatasetError(f"{error.message} {kept_aside}", hint=error.hint) from error

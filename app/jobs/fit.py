"""Whether what a job names belongs together: all that can be known before any work starts."""

from collections.abc import Mapping
from dataclasses import dataclass

from app.artifacts.orm import ArtifactRow, DatasetRow, ModelRow
from app.db import JsonObject
from app.errors import FieldError, InvalidInputError
from app.jobs.specs import (
    BRANCHES_OF_DEEPARC,
    RECONSTRUCT_OF_DEEPARC,
    ClientSpec,
    CompareSpec,
    IncrementSpec,
    ReadaptSpec,
    RestructureSpec,
    SliceSpec,
)

SLICE = "/slice_id"
DATASET = "/dataset_id"
NEW_DATASET = "/new_dataset_id"
MEMORY = "/memory_id"


@dataclass(frozen=True)
class StoredFile:
    """An artifact, and the spec of the job that left it."""

    artifact: ArtifactRow
    made_by: JsonObject


@dataclass(frozen=True)
class Named:
    """What a spec names, by JSON pointer (see `Common.references`)."""

    model: ModelRow
    datasets: Mapping[str, DatasetRow]
    files: Mapping[str, StoredFile]


def check_fit(spec: ClientSpec, named: Named) -> None:
    """Refuse what cannot work.

    Raises:
        InvalidInputError: model, datasets and slice do not belong together; points at the field.
    """
    match spec:
        case SliceSpec() | CompareSpec() | RestructureSpec():
            for pointer, dataset in named.datasets.items():
                require_same_task(named.model, dataset, pointer)
        case ReadaptSpec():
            _check_readapt(spec, named)
        case IncrementSpec():
            _check_increment(spec, named)
    if SLICE in named.files:
        require_slice_of(named.model, named.files[SLICE])
    if isinstance(spec, RestructureSpec) and SLICE in named.files:
        _check_stored_deeparc(spec, named.files[SLICE])


def require_same_task(model: ModelRow, dataset: DatasetRow, pointer: str) -> None:
    """The dataset's samples have the model's shape, and its categories are the model's outputs."""
    require_classifier(model)
    require_shape(model, dataset, pointer)
    _require_same(model, dataset, pointer, "categories", "number of categories")


def require_classifier(model: ModelRow) -> None:
    """The model has an output for each category."""
    if _facts(model)["categories"] == 1:
        detail = "the model has one output, as a regression has, and a dataset's labels are categories"
        raise InvalidInputError(
            f"No dataset fits the model: {detail}.",
            errors=[FieldError("/model_id", detail)],
            hint="Use the library: neusemslice.slice_model takes labels that are real numbers.",
        )


def require_shape(model: ModelRow, dataset: DatasetRow, pointer: str) -> None:
    """The dataset's samples have the shape that the model takes."""
    _require_same(model, dataset, pointer, "input_shape", "shape")


def require_slice_of(model: ModelRow, file: StoredFile) -> None:
    """The file is a slice of this very model."""
    made_from = file.made_by.get("model_id")
    if not file.artifact.name.startswith("slice") or made_from != model.id:
        detail = f"{file.artifact.id} is {file.artifact.name} of {made_from}, not a slice of {model.id}"
        raise InvalidInputError(
            f"The slice does not belong to the model: {detail}.",
            errors=[FieldError(SLICE, detail)],
            hint="Give the id of a slice.safetensors that a slice job made from this very model.",
        )


def is_by_deeparc(file: StoredFile) -> bool:
    """Whether a stored slice keeps layers whole or not at all."""
    return (file.made_by.get("slicing") or {}).get("strategy") == "deeparc"


def _check_readapt(spec: ReadaptSpec, named: Named) -> None:
    known = named.datasets[DATASET]
    require_same_task(named.model, known, DATASET)
    if NEW_DATASET in named.datasets:
        new = named.datasets[NEW_DATASET]
        require_shape(named.model, new, NEW_DATASET)
        offered, wanted = (list(_facts(dataset).get("class_names", ())) for dataset in (new, known))
        if offered != wanted[: len(offered)]:
            detail = f"its categories are {offered}, those of the dataset {wanted}"
            raise InvalidInputError(
                f"The new dataset does not go with the other one: {detail}.",
                errors=[FieldError(NEW_DATASET, detail)],
                hint="Give both the same categories: in an archive a folder for each, in the same order.",
            )
    if SLICE in named.files:
        made_by = (named.files[SLICE].made_by.get("slicing") or {}).get("strategy")
        if made_by not in (None, spec.strategy):
            detail = f"method={spec.method!r} takes a slice by {spec.strategy!r}, and this one is by {made_by!r}"
            raise InvalidInputError(
                f"The slice does not fit the method: {detail}.",
                errors=[FieldError(SLICE, detail)],
                hint="Choose the slice's own method, or give another slice.",
            )


def _check_increment(spec: IncrementSpec, named: Named) -> None:
    """Old samples have the model's categories; those of the new task only have its shape."""
    require_classifier(named.model)
    for pointer, labels in ((DATASET, spec.labels), (NEW_DATASET, spec.new_labels)):
        if pointer in named.datasets:
            require_shape(named.model, named.datasets[pointer], pointer)
            _require_labels(named.datasets[pointer], labels, f"/{'new_' if pointer == NEW_DATASET else ''}labels")
    if DATASET in named.datasets:
        if spec.labels is None:
            _require_same(named.model, named.datasets[DATASET], DATASET, "categories", "number of categories")
        elif len(spec.labels) != _facts(named.model)["categories"]:
            detail = (
                f"{len(spec.labels)} labels are given, and the model has {_facts(named.model)['categories']} outputs"
            )
            raise InvalidInputError(
                f"The labels do not fit the model: {detail}.",
                errors=[FieldError("/labels", detail)],
                hint="Name the label of each of the model's outputs, in their order.",
            )
    if MEMORY in named.files:
        _check_memory(spec, named.model, named.files[MEMORY])


def _require_labels(dataset: DatasetRow, labels: list[int] | None, pointer: str) -> None:
    categories = _facts(dataset)["categories"]
    unknown = [label for label in labels or () if label >= categories]
    if unknown:
        detail = f"the dataset has the labels 0 to {categories - 1}, not {unknown}"
        raise InvalidInputError(
            f"The labels do not fit the dataset: {detail}.",
            errors=[FieldError(pointer, detail)],
            hint="Name labels that the dataset has.",
        )


def _check_memory(spec: IncrementSpec, model: ModelRow, file: StoredFile) -> None:
    made_by = file.made_by
    if file.artifact.name != "memory.safetensors" or file.artifact.job_id != model.produced_by_job_id:
        detail = (
            f"{file.artifact.id} is {file.artifact.name} of {file.artifact.job_id}, which did not produce {model.id}"
        )
        raise InvalidInputError(
            f"The memory does not belong to the model: {detail}.",
            errors=[FieldError(MEMORY, detail)],
            hint="Give the memory.safetensors of the increment job that produced this very model.",
        )
    if made_by.get("method") != spec.method:
        detail = f"the model's increment had method={made_by.get('method')!r}"
        raise InvalidInputError(
            f"The method does not fit the memory: {detail}.",
            errors=[FieldError("/method", detail)],
            hint="Go on with the same method.",
        )


def _check_stored_deeparc(spec: RestructureSpec, file: StoredFile) -> None:
    if not is_by_deeparc(file):
        return
    if spec.branches != "union":
        errors = [FieldError("/branches", BRANCHES_OF_DEEPARC)]
        raise InvalidInputError(BRANCHES_OF_DEEPARC, errors=errors, hint="Leave branches out.")
    if spec.reconstruct not in (None, "none"):
        errors = [FieldError("/reconstruct", RECONSTRUCT_OF_DEEPARC)]
        raise InvalidInputError(RECONSTRUCT_OF_DEEPARC, errors=errors, hint="Leave reconstruct out.")
    if spec.dataset_id is None:
        detail = "the layers that stand in for those that a deeparc slice takes out are fitted to samples"
        raise InvalidInputError(
            f"There is no dataset: {detail}.",
            errors=[FieldError(DATASET, detail)],
            hint="Give the dataset that the slice was made on.",
        )


def _require_same(model: ModelRow, dataset: DatasetRow, pointer: str, fact: str, noun: str) -> None:
    wanted, offered = _facts(model)[fact], _facts(dataset)[fact]
    if wanted != offered:
        detail = f"the model takes {noun} {wanted}, the dataset has {offered}"
        raise InvalidInputError(
            f"The dataset does not fit the model: {detail}.",
            errors=[FieldError(pointer, detail)],
            hint="Upload the dataset with a matching preprocess, or choose another model.",
        )


def _facts(row: ModelRow | DatasetRow) -> JsonObject:
    return row.facts or {}

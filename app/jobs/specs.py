"""What a job is asked to do: one validated shape for each kind. `kind` tells them apart."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from neusemslice.comparison_config import ComparisonConfig
from neusemslice.config import Branches, Estimator, Landscape, MetricName, SlicingConfig, StrategyName
from neusemslice.errors import ConfigError

MAX_COMPARED_POINTS = 500
"""Strategies x metrics x cuts of one comparison: each is a network to evaluate."""
BRANCHES_OF_DEEPARC = "branches says how neurons are removed, and deeparc drops whole layers."
NO_NUL = r"^[^\x00]*$"
"""Postgres keeps no NUL in text."""

ModelId = Annotated[str, StringConstraints(pattern=r"^mdl_[0-9a-z]{26}$")]
DatasetId = Annotated[str, StringConstraints(pattern=r"^ds_[0-9a-z]{26}$")]
JobId = Annotated[str, StringConstraints(pattern=r"^job_[0-9a-z]{26}$")]
ArtifactId = Annotated[str, StringConstraints(pattern=r"^art_[0-9a-z]{26}$")]
Cut = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(gt=0, lt=1)]
Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=NO_NUL)]
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NO_NUL)],
        Annotated[str, StringConstraints(max_length=512, pattern=NO_NUL)],
    ],
    Field(max_length=16, description="Up to 16 pairs of your own; keys up to 64, values up to 512 characters."),
]


class Strict(BaseModel):
    """Refuses unknown fields: a misspelt parameter must not be ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _default(model: Strict, field: str) -> Any:
    """What the field has when it is left out. A client may send it along where the field has no effect."""
    return type(model).model_fields[field].default


@contextmanager
def _refusing(model: Strict) -> Iterator[None]:
    """Turn a ConfigError into pydantic's own error, at its field and with its hint."""
    try:
        yield
    except ConfigError as error:
        refusal = PydanticCustomError(error.code, "{message}", {"message": error.message, "hint": error.hint})
        place = (error.field,) if error.field in type(model).model_fields else ()
        line = InitErrorDetails(type=refusal, loc=place, input=getattr(model, error.field, None))
        raise ValidationError.from_exception_data(type(model).__name__, [line]) from error


class SlicingParams(Strict):
    """How neurons are scored and where the cut is made; see `neusemslice.SlicingConfig`."""

    strategy: StrategyName = "semantic"
    metric: MetricName = Field(default="taylor", description="Contribution metric. Not for `deeparc`.")
    threshold: Cut | None = Field(
        default=None, description="Coverage theta for `semantic`, similarity for `deeparc`. Default 0.99."
    )
    fraction: Cut | None = Field(
        default=None, description="Share of neurons kept, for the other strategies. Default 0.5."
    )
    target_compression: Share | None = Field(
        default=None, description="Share of the parameters to remove; the cut is searched for."
    )
    max_accuracy_drop: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None,
        description="Accuracy that may be lost (0.01 is one point); the cut is searched for on a tenth of the train "
        "split, which the analysis then leaves out. The test split is never used.",
    )
    increment: int = Field(default=1, ge=1, le=100_000, description="Step of the scan, for `semantic` only.")
    estimator: Estimator = "unbiased"
    landscape: Landscape = "pooled"
    samples_per_category: int = Field(default=256, ge=4, le=10_000)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        with _refusing(self):
            self.to_config(seed=0)
            if self.strategy == "deeparc" and self.metric != _default(self, "metric"):
                raise ConfigError(
                    "metric orders neurons, and strategy='deeparc' drops whole layers.",
                    field="metric",
                    hint="Leave metric out, or choose another strategy.",
                )
        return self

    def to_config(self, *, seed: int) -> SlicingConfig:
        """The library's form."""
        return SlicingConfig(**self.model_dump(), seed=seed)


class _Common(Strict):
    seed: int = Field(default=0, ge=0, lt=2**32)
    metadata: Metadata = Field(default_factory=dict)
    batch_size: int = Field(default=256, ge=1, le=8192)
    limit_per_category: int | None = Field(
        default=None, ge=4, le=10**9, description="Analyse at most this many samples of each category. Default: all."
    )


class SliceSpec(_Common):
    """Find the critical neurons of a model on a dataset's train split."""

    kind: Literal["slice"]
    model_id: ModelId
    dataset_id: DatasetId
    slicing: SlicingParams = SlicingParams()
    sweep: list[Cut] = Field(
        default_factory=list,
        max_length=100,
        description="Also cut at each of these (theta, or fraction) and report compression and accuracy.",
    )


class RestructureSpec(_Common):
    """Remove the non-critical neurons physically and return a smaller checkpoint."""

    kind: Literal["restructure"]
    model_id: ModelId
    dataset_id: DatasetId | None = Field(
        default=None,
        description="For the analysis, for accuracy before and after, and for the layers that `deeparc` sews in. "
        "Optional with `slice_id`, but for a slice by `deeparc`.",
    )
    slice_id: ArtifactId | None = Field(default=None, description="A `slice.safetensors` made from this model.")
    cut: Cut | None = Field(default=None, description="Cut the stored slice at another theta or fraction.")
    slicing: SlicingParams | None = Field(default=None, description="Slice first; instead of `slice_id`.")
    branches: Branches = Field(
        default="union",
        description="Where branches are added up: `union` removes what no branch keeps; `scatter` also lets each "
        "branch lose its own, and puts the rest at their places among zeros. Not for `deeparc`.",
    )
    name: Name | None = Field(default=None, description="Name of the produced model.")

    @model_validator(mode="after")
    def _has_one_slice(self) -> Self:
        with _refusing(self):
            if (self.slice_id is None) == (self.slicing is None):
                raise ConfigError(
                    f"slice_id and slicing are {'both' if self.slicing else 'neither of them'} given.",
                    field="slice_id",
                    hint="Give exactly one of slice_id (an existing slice) and slicing (how to make one).",
                )
            if self.slicing is None:
                return self
            if self.dataset_id is None:
                raise ConfigError(
                    "slicing needs dataset_id.", field="dataset_id", hint="Give the data on which neurons are scored."
                )
            if self.cut is not None:
                raise ConfigError(
                    "cut re-cuts a stored slice, and slicing makes a new one.",
                    field="cut",
                    hint="Set slicing.threshold or slicing.fraction instead.",
                )
            if self.slicing.strategy == "deeparc" and self.branches != _default(self, "branches"):
                raise ConfigError(BRANCHES_OF_DEEPARC, field="branches", hint="Leave branches out.")
        return self


class CompareSpec(_Common):
    """Compare strategies, metrics and cuts on one model and dataset; see `neusemslice.ComparisonConfig`."""

    kind: Literal["compare"]
    model_id: ModelId
    dataset_id: DatasetId
    strategies: list[StrategyName] = Field(default=list(ComparisonConfig.strategies), max_length=10)
    metrics: list[MetricName] = Field(default=list(ComparisonConfig.metrics), max_length=20)
    compressions: list[Share] = Field(
        default_factory=list,
        max_length=50,
        description="Shares of the parameters to remove. Default 10 % to 70 %, unless cuts are given.",
    )
    thresholds: list[Cut] = Field(
        default_factory=list, max_length=50, description="Cuts for `semantic`, instead of compressions."
    )
    fractions: list[Cut] = Field(
        default_factory=list,
        max_length=50,
        description="Cuts for the strategies that keep a fraction, instead of compressions.",
    )
    deeparc_thresholds: list[Cut] = Field(
        default=list(ComparisonConfig.deeparc_thresholds),
        max_length=50,
        description="Cuts for `deeparc`, which drops whole layers and takes no compressions.",
    )
    pilot: bool = Field(default=True, description="Also silence each tenth of the contribution order.")
    estimator: Estimator = "unbiased"
    landscape: Landscape = "pooled"
    samples_per_category: int = Field(default=256, ge=4, le=10_000)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        with _refusing(self):
            config = self.to_config()
            points = sum(len(config.cuts(run.strategy) or config.compressions) for run in config.slicing_configs())
            if points > MAX_COMPARED_POINTS:
                lists = ("strategies", "metrics", "compressions", "thresholds", "fractions", "deeparc_thresholds")
                longest = max(lists, key=lambda field: len(getattr(self, field)))
                raise ConfigError(
                    f"strategies x metrics x cuts are {points} networks to evaluate, and one job evaluates at most "
                    f"{MAX_COMPARED_POINTS}.",
                    field=longest,
                    hint=f"Leave out some {longest}, or submit several jobs.",
                )
        return self

    def to_config(self) -> ComparisonConfig:
        """The library's form."""
        return ComparisonConfig(
            strategies=tuple(self.strategies),
            metrics=tuple(self.metrics),
            compressions=tuple(self.compressions),
            thresholds=tuple(self.thresholds),
            fractions=tuple(self.fractions),
            deeparc_thresholds=tuple(self.deeparc_thresholds),
            pilot=self.pilot,
            estimator=self.estimator,
            landscape=self.landscape,
            samples_per_category=self.samples_per_category,
            seed=self.seed,
        )


class InspectModelSpec(Strict):
    """Read an uploaded network, check it, and store it in canonical form."""

    kind: Literal["inspect_model"]
    model_id: ModelId


class InspectDatasetSpec(Strict):
    """Read an uploaded dataset, check it, and store it in canonical form."""

    kind: Literal["inspect_dataset"]
    dataset_id: DatasetId


JobSpec = Annotated[SliceSpec | RestructureSpec | CompareSpec, Field(discriminator="kind")]
InspectionSpec = InspectModelSpec | InspectDatasetSpec
AnySpec = SliceSpec | RestructureSpec | CompareSpec | InspectModelSpec | InspectDatasetSpec

JOB_KINDS = ("slice", "restructure", "compare")
_ANY_SPEC: TypeAdapter[AnySpec] = TypeAdapter(Annotated[AnySpec, Field(discriminator="kind")])


def parse_spec(spec: dict[str, Any]) -> AnySpec:
    """The typed form of a stored spec."""
    return _ANY_SPEC.validate_python(spec)


def queue_of(kind: str) -> str:
    """Inspections are short and have a queue of their own, so that an hour's slicing does not hold up an upload."""
    return "inspect" if kind.startswith("inspect_") else "compute"


QUEUES = ("inspect", "compute")

"""The `readapt` job."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, FiniteFloat, model_validator

from app.jobs.specs.common import ArtifactId, Cut, DatasetId, Producing, Share, Strict, refusing
from app.jobs.specs.sharding import Shards, check_shards
from app.jobs.specs.slicing_params import SlicingParams
from app.jobs.specs.training_params import TrainingParams
from neusemslice.config import StrategyName
from neusemslice.errors import ConfigError
from neusemslice.readaptation_config import (
    MAX_STEPS,
    STRATEGY_OF,
    AttackConfig,
    AttackMethod,
    Norm,
    ReadaptConfig,
    ReadaptMethod,
)

MAX_SAMPLES = 1_000_000
Epsilon = Annotated[float, Field(gt=0, le=1000)]


class AttackParams(Strict):
    """How samples are attacked; see `neusemslice.AttackConfig`."""

    method: AttackMethod = "fgsm"
    epsilons: list[Epsilon] = Field(
        default=list(AttackConfig.epsilons),
        min_length=1,
        max_length=20,
        description="Strengths, as shares of `value_range`, before any normalisation: with pixels, 8/255 = 0.031 is "
        "eight grey levels. With several, sample after sample takes the next one.",
    )
    norm: Norm = "inf"
    steps: int = Field(default=AttackConfig.steps, ge=1, le=MAX_STEPS, description="Of `pgd`.")
    step: float = Field(default=AttackConfig.step, gt=0, le=1, description="Of `pgd`, as a share of epsilon.")
    random_start: bool = Field(default=True, description="Of `pgd`.")
    value_range: tuple[FiniteFloat, FiniteFloat] | None = Field(
        default=None,
        description="Lowest and highest valid value as stored, such as [0, 255]: attacked samples stay within. "
        "Default: what each channel of the train split shows.",
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        with refusing(self):
            self.to_config()
            if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
                raise ConfigError(
                    f"value_range={list(self.value_range)} is no range.",
                    field="value_range",
                    hint="Give the lowest and the highest stored value, such as [0, 255].",
                )
        return self

    def to_config(self) -> AttackConfig:
        """The library's form."""
        values = self.model_dump(exclude={"value_range"})
        return AttackConfig(**values | {"epsilons": tuple(self.epsilons)})


class ReadaptSpec(Producing):
    """Train a model's critical neurons on attacked or new samples; see `neusemslice.readapt`."""

    produced: ClassVar[str] = "readapted"

    kind: Literal["readapt"]
    dataset_id: DatasetId = Field(
        description="What the model knows: clean samples are drawn from its train split, accuracies are measured on "
        "its test split."
    )
    new_dataset_id: DatasetId | None = Field(
        default=None,
        description="Instead of `attack`: samples to learn besides, such as drifted or misclassified ones. Its train "
        "split is used; its categories are those of `dataset_id`.",
    )
    attack: AttackParams | None = Field(default=None, description="Instead of `new_dataset_id`.")
    method: ReadaptMethod = Field(default="semantic", description="What trains. The last layer always does.")
    samples: int = Field(
        default=ReadaptConfig.samples,
        ge=1,
        le=MAX_SAMPLES,
        description="Clean samples drawn to train on, and others that the result is attacked with.",
    )
    training: TrainingParams = TrainingParams()
    slicing: SlicingParams | None = Field(
        default=None, description="How critical neurons are found, by the method's strategy. Default: its defaults."
    )
    slice_id: ArtifactId | None = Field(
        default=None, description="Instead of `slicing`: a `slice.safetensors` made from this model."
    )
    cut: Cut | None = Field(default=None, description="Cut the stored slice at another theta or fraction.")
    deeparc_threshold: Cut | None = Field(
        default=None,
        description="With `semantic+deeparc`: similarity above which a layer is redundant. Default 0.99.",
    )
    validation_share: Share = Field(
        default=ReadaptConfig.validation_share, description="Of the samples, held out if `training.patience` is given."
    )

    shards: Shards = 1

    @property
    def strategy(self) -> StrategyName | None:
        """That of the slice which says what trains; None where all does."""
        return STRATEGY_OF[self.method]

    @property
    def analysis(self) -> SlicingParams | None:
        """How the job slices its model; None if it does not."""
        if self.strategy is None or self.slice_id is not None:
            return None
        return self.slicing or SlicingParams(strategy=self.strategy)

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        with refusing(self):
            self.to_config()
            check_shards(self.shards, self.analysis)
            if (self.attack is None) == (self.new_dataset_id is None):
                raise ConfigError(
                    f"attack and new_dataset_id are {'both' if self.attack else 'neither of them'} given.",
                    field="attack",
                    hint="Give exactly one: attack ({} for its defaults), or new_dataset_id.",
                )
            if self.slice_id is not None and (self.slicing is not None or self.strategy is None):
                reason = f"method={self.method!r} trains everything" if self.strategy is None else "slicing makes one"
                raise ConfigError(
                    f"slice_id names a slice, and {reason}.", field="slice_id", hint="Leave slice_id out."
                )
            if self.cut is not None and self.slice_id is None:
                raise ConfigError(
                    "cut re-cuts a stored slice, and there is no slice_id.",
                    field="cut",
                    hint="Set slicing.threshold or slicing.fraction instead.",
                )
        return self

    def to_config(self) -> ReadaptConfig:
        """The library's form."""
        return ReadaptConfig(
            method=self.method,
            attack=None if self.attack is None else self.attack.to_config(),
            samples=self.samples,
            training=self.training.to_config(seed=self.seed),
            slicing=None if self.slicing is None else self.slicing.to_config(seed=self.seed),
            deeparc_threshold=self.deeparc_threshold,
            validation_share=self.validation_share,
            seed=self.seed,
        )

"""The `increment` job."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from app.jobs.specs.common import ArtifactId, Cut, DatasetId, Producing, refusing
from app.jobs.specs.slicing_params import SlicingParams
from app.jobs.specs.training_params import TrainingParams
from neusemslice.config import Reconstruction
from neusemslice.errors import ConfigError
from neusemslice.increment_config import DEFAULT_DIRECTIONS, MAX_DIRECTIONS, IncrementConfig, IncrementMethod

Labels = Annotated[
    list[Annotated[int, Field(ge=0, le=10**6)]],
    Field(
        min_length=1,
        max_length=10_000,
        description="Which of the dataset's labels belong to the task: the samples of others are left out, and these "
        "become the task's outputs in this order. Default: all.",
    ),
]


class IncrementSpec(Producing):
    """Teach a model further categories, beside those that it knows; see `neusemslice.learn_increment`."""

    produced: ClassVar[str] = "incremented"

    kind: Literal["increment"]
    new_dataset_id: DatasetId = Field(description="The new task. Its categories become outputs after the model's own.")
    new_labels: Labels | None = None
    dataset_id: DatasetId | None = Field(
        default=None,
        description="What the model knows. Its train split is needed by a model's first increment, but for `retrain`; "
        "accuracies are measured on both datasets' test splits if it is given.",
    )
    labels: Labels | None = None
    memory_id: ArtifactId | None = Field(
        default=None, description="The `memory.safetensors` of the increment that produced the model, to go on from it."
    )
    method: IncrementMethod = Field(
        default="isolated", description="`isolated` keeps the outputs for earlier tasks the same to the last bit."
    )
    slicing: SlicingParams | None = Field(
        default=None, description="How critical neurons are found. Default: theta 0.9, or the strategy's default."
    )
    training: TrainingParams = TrainingParams()
    replay_fraction: Cut | None = Field(
        default=None, description="Share of the samples that is kept and trained on again. Default 0.1."
    )
    reconstruct: Reconstruction = Field(default="least_squares", description="Of `isolated`.")
    decision_directions: int = Field(
        default=DEFAULT_DIRECTIONS,
        ge=1,
        le=MAX_DIRECTIONS,
        description="Of `isolated`: how finely tasks are told apart by what their samples look like. The memory grows "
        "with its square.",
    )

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        with refusing(self):
            self.to_config()
            for field, labels in (("labels", self.labels), ("new_labels", self.new_labels)):
                if labels is not None and len(set(labels)) < len(labels):
                    raise ConfigError(f"{field} names a label twice.", field=field, hint="Name each once.")
            if self.labels is not None and self.dataset_id is None:
                raise ConfigError(
                    "labels are those of dataset_id, which is not given.", field="labels", hint="Give dataset_id too."
                )
            if self.dataset_id is None and self.memory_id is None and self.method != "retrain":
                raise ConfigError(
                    f"method={self.method!r} needs samples of what the model knows, or the memory of its increment.",
                    field="dataset_id",
                    hint="Give dataset_id, or memory_id.",
                )
            if self.training.patience is not None:
                raise ConfigError(
                    "patience looks at samples held out, and an increment trains on all.",
                    field="training",
                    hint="Leave training.patience out.",
                )
            self._check_apart()
        return self

    def _check_apart(self) -> None:
        """One dataset may serve two tasks, by labels of its own for each."""
        if self.dataset_id != self.new_dataset_id:
            return
        both = sorted(set(self.labels or ()) & set(self.new_labels or ()))
        if self.labels is None or self.new_labels is None or both:
            raise ConfigError(
                "dataset_id and new_dataset_id are one dataset, and "
                + (f"both tasks have its labels {both}." if both else "labels and new_labels do not share it out."),
                field="new_labels",
                hint="Give labels and new_labels that have none in common.",
            )

    def to_config(self) -> IncrementConfig:
        """The library's form."""
        return IncrementConfig(
            method=self.method,
            slicing=None if self.slicing is None else self.slicing.to_config(seed=self.seed),
            training=self.training.to_config(seed=self.seed),
            replay_fraction=self.replay_fraction,
            reconstruct=self.reconstruct,
            decision_directions=self.decision_directions,
            seed=self.seed,
        )

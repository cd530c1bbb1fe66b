"""Where a pruning stood after an iteration, in one file: a checkpoint of the network with the records beside it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import fx

from neusemslice.checkpoint import read_checkpoint_metadata, save_checkpoint
from neusemslice.copying import copy_graph
from neusemslice.errors import CheckpointError
from neusemslice.pruning.results import PruningIteration
from neusemslice.tracing import SliceableModel


@dataclass(frozen=True, eq=False)
class IterationFiles:
    """The files `iteration-N.safetensors` of one pruning, of which only the latest is kept.

    Attributes:
        folder: an existing one, for this pruning alone.
        identity: JSON values that tell this pruning from others.
    """

    folder: Path
    identity: dict[str, Any]

    def save(self, network: fx.GraphModule, model: SliceableModel, records: Sequence[PruningIteration]) -> None:
        """Write the latest iteration, whole or not at all, and remove what it replaces."""
        latest = records[-1].iteration
        state = {"identity": self.identity, "iterations": [asdict(record) for record in records]}
        save_checkpoint(
            network, model.input_shape, self.folder / f"iteration-{latest}.safetensors", {"pruning_state": state}
        )
        for number, path in self._found().items():
            if number < latest:
                path.unlink()
        self.training_file(latest).unlink(missing_ok=True)

    def load(self, model: SliceableModel) -> tuple[fx.GraphModule, list[PruningIteration]] | None:
        """The latest iteration, or None where there is none.

        Raises:
            CheckpointError: the file is of another pruning, or is damaged.
        """
        found = self._found()
        if not found:
            return None
        path = found[max(found)]
        state = read_checkpoint_metadata(path)["extra"].get("pruning_state", {})
        if state.get("identity") != self.identity:
            raise CheckpointError(
                f"{path} belongs to another pruning.", hint="Give a folder of its own, or delete what is in it."
            )
        network = copy_graph(model.graph_module)
        network.load_state_dict(load_file(path))
        return network, [PruningIteration(**record) for record in state["iterations"]]

    def training_file(self, iteration: int) -> Path:
        """Where the fine-tuning of an iteration keeps its state."""
        return self.folder / f"fine-tuning-{iteration}.safetensors"

    def _found(self) -> dict[int, Path]:
        return {int(path.stem.partition("-")[2]): path for path in self.folder.glob("iteration-*.safetensors")}

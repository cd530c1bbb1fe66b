"""Taking redundant layers out, and sewing together what is left."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, fx, nn

from neusemslice.copying import copy_graph, unbound
from neusemslice.deeparc.places import NodeReader, Place, find_places, leaves_unchanged
from neusemslice.deeparc.sewing import choose_pattern
from neusemslice.errors import ConfigError, DatasetError, SliceMismatchError
from neusemslice.least_squares import LeastSquares
from neusemslice.model_slice import ModelSlice
from neusemslice.profiling import count_parameters
from neusemslice.progress import OnProgress, Progress, ShouldStop
from neusemslice.tracing import SliceableModel


@dataclass(frozen=True)
class Seam:
    """One run of redundant layers, and what stands in for it.

    Attributes:
        first: path of the place that the run begins after.
        last: path of the place that it ends with; a sewing layer has this path now.
        layers: the sliceable layers that are gone.
        kind: "identity" in a residual stream, which goes on as it is; otherwise "linear", a learned sewing layer.
        parameters_before, parameters_after: of the run, and of what replaces it: a sewing layer need not be smaller.
        residual: |value of the network - value sewn| over |value of the network - its mean|, at the run's end; for a
            learned layer on calibration samples that it was not fitted to. None if there were no calibration samples.
    """

    first: str
    last: str
    layers: tuple[str, ...]
    kind: str
    parameters_before: int
    parameters_after: int
    residual: float | None


@dataclass(frozen=True, eq=False)
class Sewn:
    """The network without its redundant layers, in canonical form, in eval mode and trainable.

    Attributes:
        model: the network.
        seams: what was taken out, in forward order; none if nothing is redundant.
        parameters_before, parameters_after: of the whole network.
    """

    model: fx.GraphModule
    seams: tuple[Seam, ...]
    parameters_before: int
    parameters_after: int

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values, without the network."""
        return {
            "parameters_before": self.parameters_before,
            "parameters_after": self.parameters_after,
            "seams": [asdict(seam) | {"layers": list(seam.layers)} for seam in self.seams],
        }


def remove_redundant(
    model: SliceableModel,
    slice_: ModelSlice,
    calibration: Iterable[Any] | None = None,
    *,
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> Sewn:
    """Take out the layers that a deeparc slice finds redundant (paper, section 2.2).

    Of each run of places that are alike the first stays, and everything after it up to the run's last is taken out. A
    residual stream then goes on as it is. Elsewhere a sewing layer is put in: the linear map, fitted by ridge
    regression to the calibration samples, from the value before the run to the value at its end; a convolution of size
    one behind an adaptive average pool where the spatial size changes, or a linear layer. Seams are fitted in forward
    order, each on what the ones before it really give.

    Args:
        slice_: a slice of this model by strategy deeparc.
        calibration: re-iterable batches of unlabelled samples [batch, *input shape], or of pairs whose labels are not
            looked at; some hundreds of samples. May be None if only residual streams are cut.

    Raises:
        SliceMismatchError: the slice belongs to another model, or is of another strategy.
        ConfigError: a sewing layer is needed, and there is no calibration data.
        UnsupportedModelError: no sewing layer leads from one value to the other.
        DatasetError: the calibration data is too small, does not fit the model, or reads only once.
        StoppedError: should_stop() returned true.
    """
    _check_slice(model, slice_)
    progress = Progress(on_progress, should_stop)
    runs = _redundant_runs(model, slice_)
    if calibration is not None and iter(calibration) is calibration:
        raise DatasetError(
            "The calibration data can be read only once.", hint="Pass a list of batches instead of a generator."
        )
    network = copy_graph(model.graph_module)
    seams = []
    for number, run in enumerate(runs):
        progress.report("sew", number, len(runs))
        network, seam = _sew(model, network, run, calibration, progress)
        seams.append(seam)
    progress.report("sew", len(runs), len(runs))
    return Sewn(
        unbound(network).requires_grad_(requires_grad=True),
        tuple(seams),
        count_parameters(model.graph_module),
        count_parameters(network),
    )


@dataclass(frozen=True)
class _Run:
    """A place, and the redundant ones that follow it."""

    first: Place
    redundant: tuple[Place, ...]

    @property
    def last(self) -> str:
        return self.redundant[-1].path

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(path for place in self.redundant for path in place.nodes)


def _check_slice(model: SliceableModel, slice_: ModelSlice) -> None:
    if slice_.config.strategy != "deeparc":
        raise SliceMismatchError(
            f"The slice is of strategy {slice_.config.strategy!r}, which keeps neurons, not layers.",
            hint="Slice with strategy='deeparc', or use restructure.",
        )
    if slice_.model_fingerprint != model.fingerprint:
        raise SliceMismatchError(
            "The slice was made from another model: the fingerprints differ.", hint="Slice this model."
        )


def _redundant_runs(model: SliceableModel, slice_: ModelSlice) -> list[_Run]:
    kept = slice_.merged()
    runs: list[_Run] = []
    before: Place | None = None
    for place in find_places(model):
        redundant = not any(bool(kept[layer].any()) for layer in place.layers)
        if redundant and before is not None:
            if runs and runs[-1].last == before.path:
                runs[-1] = _Run(runs[-1].first, (*runs[-1].redundant, place))
            else:
                runs.append(_Run(before, (place,)))
        before = place
    return runs


def _sew(
    model: SliceableModel,
    network: fx.GraphModule,
    run: _Run,
    calibration: Iterable[Any] | None,
    progress: Progress,
) -> tuple[fx.GraphModule, Seam]:
    """The network with the run replaced."""
    pattern = choose_pattern(model, run.first.path, run.last)
    stream = pattern.same_shape and leaves_unchanged(model.graph_module, run.first.path, run.last)
    layers: list[nn.Module] = []
    residual = None
    if calibration is not None:
        fit = LeastSquares()
        for before, after in _values(model, network, run, calibration):
            fit.add(pattern.rows(before if stream else pattern.prepare(before)), pattern.rows(after))
            progress.report("sew", 0, 1)
        if stream:
            residual = fit.residual_of_identity()
        else:
            found = fit.solve()
            layers, residual = pattern.layers(found, next(network.parameters())), found.residual
    elif not stream:
        raise ConfigError(
            f"Between {run.first.path!r} and {run.last!r} a sewing layer has to be fitted, and there is no data.",
            field="calibration",
            hint="Pass calibration: some hundreds of unlabelled samples.",
        )
    seam = Seam(
        run.first.path,
        run.last,
        tuple(layer for place in run.redundant for layer in place.layers),
        "linear" if layers else "identity",
        sum(count_parameters(network.get_submodule(path)) for path in run.nodes),
        sum(map(count_parameters, layers)),
        residual,
    )
    return _replaced(network, run, layers), seam


def _values(
    model: SliceableModel, network: fx.GraphModule, run: _Run, calibration: Iterable[Any]
) -> Iterator[tuple[Tensor, Tensor]]:
    """For each batch the value before the run in the network as it is now, and that at its end in the original."""
    now, original = NodeReader(network, [run.first.path]), NodeReader(model.graph_module, [run.last])
    for batch in calibration:
        inputs = batch[0] if isinstance(batch, tuple | list) else batch
        if not isinstance(inputs, Tensor) or tuple(inputs.shape[1:]) != model.input_shape:
            shape = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise DatasetError(
                f"A calibration batch is {shape}; the model takes samples of {model.input_shape}.",
                hint="Give inputs as [batch, *input shape].",
            )
        on_device = inputs.to(model.device, model.dtype)
        yield now.read(on_device)[run.first.path], original.read(on_device)[run.last]


def _replaced(network: fx.GraphModule, run: _Run, layers: Sequence[nn.Module]) -> fx.GraphModule:
    """The network in which `layers` lead from the run's first place to where its last one is read.

    The last of them is called by the last place's path.
    """
    graph = network.graph
    nodes = {node.target: node for node in graph.nodes if node.op == "call_module"}
    value, last = nodes[run.first.path], nodes[run.last]
    parent, _, name = run.last.rpartition(".")
    paths = [f"{parent}.sewing_{name}_{number}".lstrip(".") for number in range(len(layers) - 1)]
    before = last
    for path, layer in zip([*paths, run.last] if layers else [], layers, strict=True):
        network.add_submodule(path, layer)
        with graph.inserting_after(before):
            value = before = graph.call_module(path, (value,))
    last.replace_all_uses_with(value)
    for path in reversed(run.nodes):
        graph.erase_node(nodes[path])
    return fx.GraphModule(network, graph)

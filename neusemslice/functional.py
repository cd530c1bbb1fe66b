"""Layers written as functions of the network's own tensors: `F.linear(x, self.weight, self.bias)`, as the layer."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 torch's own name for it
from torch import Tensor, nn

from neusemslice.calls import Call, Lifted, is_setting
from neusemslice.observing import Own

_CONVOLUTIONS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS: dict[int, type[nn.Module]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}
_TENSORS = ("weight", "bias", "running_mean", "running_var")


def _lift_linear(call: Call) -> Lifted:
    values = call.bind("input weight bias")
    own = _own_tensors(call, values, required="weight")
    outputs, inputs = own["weight"].tensor.shape
    return _with_state(call, values, nn.Linear(inputs, outputs, bias="bias" in own, device="meta"), own)


def _lift_convolution(call: Call) -> Lifted:
    values = call.bind("input weight bias stride padding dilation groups")
    own = _own_tensors(call, values, required="weight")
    weight, groups = own["weight"].tensor, values.get("groups", 1)
    settings = {name: _spread(values[name]) for name in ("stride", "padding", "dilation") if name in values}
    layer = _CONVOLUTIONS[weight.ndim - 3](
        weight.shape[1] * groups,
        len(weight),
        tuple(weight.shape[2:]),
        groups=groups,
        bias="bias" in own,
        device="meta",
        **settings,
    )
    return _with_state(call, values, layer, own)


def _spread(setting: Any) -> Any:
    """One number for all dimensions may stand in a list of its own."""
    return setting[0] if isinstance(setting, list | tuple) and len(setting) == 1 else setting


def _lift_batch_norm(call: Call) -> Lifted:
    values = call.bind("input running_mean running_var weight bias training momentum eps")
    if values.get("training"):
        raise call.refused("has training set", "Pass training=self.training, so that eval mode turns it off.")
    own = _own_tensors(call, values, required="running_mean")
    kind = _BATCH_NORMS[len(call.shape(call.require_value(values["input"])))]
    settings = {name: values[name] for name in ("momentum", "eps") if name in values}
    affine = "weight" in own or "bias" in own
    features = len(own["running_mean"].tensor)
    return _with_state(call, values, kind(features, affine=affine, device="meta", **settings), own)


def _lift_layer_norm(call: Call) -> Lifted:
    values = call.bind("input normalized_shape weight bias eps")
    own = _own_tensors(call, values)
    shape = values["normalized_shape"]
    if not is_setting(shape):
        raise call.refused("has a normalized_shape that depends on its input", "Give it as numbers.")
    settings = {"elementwise_affine": bool(own), "bias": "bias" in own, "eps": values.get("eps", 1e-5)}
    return _with_state(call, values, nn.LayerNorm(tuple(shape), device="meta", **settings), own)


def _lift_group_norm(call: Call) -> Lifted:
    values = call.bind("input num_groups weight bias eps")
    own = _own_tensors(call, values)
    channels = call.shape(call.require_value(values["input"]))[1]
    settings = {"affine": bool(own), "eps": values.get("eps", 1e-5)}
    return _with_state(call, values, nn.GroupNorm(values["num_groups"], channels, device="meta", **settings), own)


def _lift_prelu(call: Call) -> Lifted:
    values = call.bind("input weight")
    own = _own_tensors(call, values, required="weight")
    return _with_state(call, values, nn.PReLU(own["weight"].tensor.numel(), device="meta"), own)


def _own_tensors(call: Call, values: dict[str, Any], required: str | None = None) -> dict[str, Own]:
    """The network's own tensors among the arguments: weights that can be learned, and statistics."""
    own = {}
    for name in _TENSORS:
        if values.get(name) is not None:
            found = call.own(values[name])
            if found is None:
                raise call.refused(f"has a {name} that depends on the input", "Use the network's own parameters.")
            if name in ("weight", "bias") and not found.learned:
                raise call.refused(f"has a {name} that is not learned", "Make it a parameter.")
            own[name] = found
    if required is not None and required not in own:
        raise call.refused(f"has no {required}", "Keep running statistics." if "running" in required else "Give one.")
    return own


def _with_state(call: Call, values: dict[str, Any], layer: nn.Module, own: dict[str, Own]) -> Lifted:
    """The layer with its tensors; a scale or shift that it was not given is one or zero."""
    source = call.require_value(values.get("input"))
    dtype, device = call.kind(source)
    state: dict[str, Tensor] = {}
    for name, empty in layer.state_dict().items():
        if name in own:
            state[name] = own[name].tensor.reshape(empty.shape).clone()
        elif name == "num_batches_tracked":
            state[name] = torch.zeros((), dtype=torch.long, device=device)
        else:
            state[name] = torch.full(empty.shape, float(name == "weight"), dtype=dtype, device=device)
    layer.load_state_dict(state, assign=True)
    return Lifted(layer.requires_grad_(requires_grad=False), (source,), path=_path(call, own))


def _path(call: Call, own: dict[str, Own]) -> str | None:
    """Where the tensors keep their names: the layer whose `weight` another module borrows, or the weight's own name."""
    origins = own["weight"].origins if "weight" in own else ()
    if len(origins) != 1:
        return None
    container, _, name = origins[0].rpartition(".")
    if name != "weight":
        return origins[0]
    return None if container == call.place.rpartition(".")[0] else container


HANDLERS: dict[Callable[..., Any] | str, Callable[[Call], Lifted]] = {
    F.linear: _lift_linear,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d), _lift_convolution),
    F.batch_norm: _lift_batch_norm,
    F.layer_norm: _lift_layer_norm,
    F.group_norm: _lift_group_norm,
    **dict.fromkeys((F.prelu, torch.prelu, "prelu"), _lift_prelu),
}

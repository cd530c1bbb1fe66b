"""Weights files of strangers: read by content, never by name, and fitted to an architecture.

Two forms are read: safetensors, and the state dict that `torch.save` writes. Nothing is ever unpickled beyond tensors.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from neusemslice.architecture import build_network
from neusemslice.builders import find_builder
from neusemslice.errors import UnsafeFileError, WeightsError
from neusemslice.layer_types import show
from neusemslice.safetensors_file import MAX_TENSORS, check_safetensors, looks_like_safetensors
from neusemslice.torch_zip import SAVE_STATE_DICT, read_torch_zip

_SHOWN = 10
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PARALLEL = "module."
_SAFETENSORS = 'Send safetensors: safetensors.torch.save_file(model.state_dict(), "weights.safetensors").'
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
    (b"7z\xbc\xaf", "7-Zip"),
    (b"\x89HDF\r\n\x1a\n", "HDF5 (Keras)"),
    (b"\x93NUMPY", "numpy"),
    (b"\x08", "ONNX or another protobuf"),
)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a torch state dict, by name.

    A state dict may lie under "state_dict", "model_state_dict" or "model"; a "module." before every name (DataParallel)
    is taken off. The tensors may map the file: it must stay as it is while they are used.

    Raises:
        UnsafeFileError: reading the file would need code that it brings along (pickle, TorchScript, exported program).
        WeightsError: the file is empty, damaged, of another kind, or holds something else than dense tensors.
        OSError: the file cannot be opened.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise WeightsError("The weights file is empty.", hint=_SAFETENSORS)
    if start.startswith(b"PK\x03\x04"):
        tensors = _named_tensors(read_torch_zip(path))
    elif looks_like_safetensors(path):
        check_safetensors(path, WeightsError)
        tensors = load_file(path)
    else:
        raise _foreign(start)
    _check_sizes(tensors, path.stat().st_size)
    if tensors and all(name.startswith(_PARALLEL) for name in tensors):
        return {name.removeprefix(_PARALLEL): tensor for name, tensor in tensors.items()}
    return tensors


def load_network(spec: Any, weights_path: str | Path) -> nn.Module:
    """The network a spec describes with the weights of a file, in float32, on the CPU, in eval mode.

    The network holds copies: the file may change or vanish afterwards.

    Args:
        spec: parsed JSON of an architecture, see `neusemslice.architecture`.
        weights_path: a file `read_weights` accepts.

    Raises:
        ArchitectureError: the spec cannot be built.
        UnsafeFileError, WeightsError: the file cannot be read, lacks tensors, has others, or other shapes, or NaN.
        OSError: the file cannot be opened.
    """
    network = build_network(spec)
    wanted = network.state_dict()
    given = read_weights(weights_path)
    for name in wanted.keys() - given.keys():
        if name.endswith("num_batches_tracked"):  # absent from files older than torch 0.4.1, and from some converters
            given[name] = torch.tensor(0)
    _check_fit(wanted, given)
    network.load_state_dict({name: _settle(name, given[name], wanted[name]) for name in wanted}, assign=True)
    _fill_unsaved_buffers(network, spec)
    return network.eval()


def _foreign(start: bytes) -> WeightsError:
    if start[:1] == b"\x80" or start[257:262] == b"ustar":
        return UnsafeFileError("The file is a bare pickle (torch's old format), which is code.", hint=SAVE_STATE_DICT)
    for magic, kind in _FOREIGN:
        if start.startswith(magic):
            return WeightsError(f"The weights file is {kind}, which is not read.", hint=_SAFETENSORS)
    return WeightsError("The weights file is neither safetensors nor a torch state dict.", hint=_SAFETENSORS)


def _named_tensors(content: Any) -> dict[str, Tensor]:
    """The state dict in what a torch file holds."""
    if isinstance(content, Mapping):
        for wrapper in _WRAPPERS:
            if isinstance(content.get(wrapper), Mapping):
                content = content[wrapper]
                break
    if not isinstance(content, Mapping):
        raise WeightsError(f"The torch file holds a {type(content).__name__}, not a state dict.", hint=SAVE_STATE_DICT)
    if len(content) > MAX_TENSORS:
        raise WeightsError(f"The file has {len(content):,} tensors.", hint=f"At most {MAX_TENSORS:,} are accepted.")
    tensors = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WeightsError(f"Entry {show(name)} is a {type(value).__name__}, not a tensor.", hint=SAVE_STATE_DICT)
        tensors[name] = value.detach()
    return tensors


def _check_sizes(tensors: dict[str, Tensor], file_size: int) -> None:
    """Refuse tensors that stand for more bytes than the file has: views of few bytes under a huge shape."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise WeightsError(f"Tensor {show(name)} is not dense.", hint="Save ordinary dense tensors.")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise WeightsError(f"Tensor {show(name)} repeats its values.", hint="Save tensor.contiguous() instead.")
    # Tied tensors are stored once and counted twice.
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > 2 * file_size:
        raise WeightsError("The tensors overlap each other in the file.", hint="Save each tensor's own copy.")


def _check_fit(wanted: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    """Raise one WeightsError that lists everything which does not fit."""
    shared = [name for name in wanted if name in given]
    complaints = {
        "missing": [_named(name, wanted) for name in wanted if name not in given],
        "unexpected": [_named(name, given) for name in given if name not in wanted],
        "of another shape": [
            f"{name} {_shape(given[name])} instead of {_shape(wanted[name])}"
            for name in shared
            if given[name].shape != wanted[name].shape
        ],
        "of another type": [
            f"{name} {given[name].dtype} instead of {wanted[name].dtype}"
            for name in shared
            if given[name].dtype not in (_FLOATS if wanted[name].is_floating_point() else _INTEGERS)
        ],
    }
    found = [f"{len(names)} {what}: {_first(names)}" for what, names in complaints.items() if names]
    if found:
        raise WeightsError(
            f"The weights do not fit the architecture. {'; '.join(found)}.",
            hint="Send the architecture these weights were trained with, or mend it with replace.",
        )


def _settle(name: str, given: Tensor, wanted: Tensor) -> Tensor:
    """An own contiguous copy of the given tensor, in float32 or the integer type wanted."""
    tensor = given.to(torch.float32 if wanted.is_floating_point() else wanted.dtype, copy=True).contiguous()
    if not bool(torch.isfinite(tensor).all()):
        raise WeightsError(f"Tensor {name} holds NaN or infinity.", hint="Send weights from before training diverged.")
    return tensor


def _fill_unsaved_buffers(network: nn.Module, spec: Any) -> None:
    """Give buffers that a state dict leaves out the values they are born with; only registered builders have any.

    That takes the network built once more, with memory: by now it is known to be as large as the weights file.
    """
    unsaved = [name for name, buffer in network.named_buffers() if buffer.is_meta]
    if unsaved:
        born = find_builder(spec["builder"], device="cpu")(spec.get("kwargs", {}))
        for name in unsaved:
            path, _, buffer = name.rpartition(".")
            network.get_submodule(path).register_buffer(buffer, born.get_buffer(name), persistent=False)


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _named(name: str, tensors: dict[str, Tensor]) -> str:
    return f"{name} {_shape(tensors[name])}"


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")

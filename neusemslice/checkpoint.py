"""Produced checkpoints: one safetensors file that holds a network's tensors and its architecture as JSON.

No pickle, no original class: the file is read back by this library alone, and its tensors by any safetensors reader.
The metadata key "neusemslice" holds {"format": 1, "architecture": spec, "extra": {...}}. A checkpoint is also an
ordinary weights file: `load_network(read_checkpoint_metadata(path)["architecture"], path)` is the same network.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from neusemslice.architecture import build_network, describe_network
from neusemslice.errors import ArchitectureError, CheckpointError, WeightsError
from neusemslice.layer_types import show
from neusemslice.safetensors_file import MAX_HEADER_BYTES, file_bytes, read_json_metadata, replacing
from neusemslice.weights import load_network

FORMAT = 1
_KEY = "neusemslice"
_NAMES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}
_FIELDS = {"format", "architecture", "extra"}


def save_checkpoint(
    network: fx.GraphModule, input_shape: tuple[int, ...], path: str | Path, extra: dict[str, Any] | None = None
) -> None:
    """Write a network to one safetensors file, whole or not at all; an earlier file at `path` is replaced at the end.

    Tensors that share memory are each written as their own copy, which computes the same.

    Args:
        network: a canonical graph of listed layers, see `describe_network`.
        input_shape: shape of one sample, without the batch axis.
        path: where to write; its folder must exist.
        extra: JSON values kept beside the architecture, such as a report.

    Raises:
        ArchitectureError: the network cannot be written as data; names the node.
        CheckpointError: the file could not be read back: a tensor of no layer or with NaN, `extra` that is not JSON.
        OSError: the file cannot be written.
    """
    spec = describe_network(network, input_shape)
    tensors = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in network.state_dict().items()}
    _check_readable(build_network(spec).state_dict(), tensors)
    try:
        metadata = json.dumps({"format": FORMAT, "architecture": spec, "extra": extra or {}}, allow_nan=False)
    except (RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(f"extra is not JSON: {error}.", hint="Give plain finite JSON values.") from error
    if len(metadata) > MAX_HEADER_BYTES // 2:
        raise CheckpointError(f"extra has {len(metadata):,} characters.", hint="Keep bulk data in a file of its own.")
    with replacing(Path(path)) as draft:
        save_file(tensors, draft, {_KEY: metadata})


def checkpoint_bytes(network: fx.GraphModule, input_shape: tuple[int, ...]) -> int:
    """Size of the file that `save_checkpoint` writes without `extra`. Nothing is written; tensors need no values.

    Raises:
        ArchitectureError: the network cannot be written as data; names the node.
    """
    about = {"format": FORMAT, "architecture": describe_network(network, input_shape), "extra": {}}
    tensors = {name: (_NAMES[tensor.dtype], tensor.shape) for name, tensor in network.state_dict().items()}
    return file_bytes(tensors, {_KEY: json.dumps(about)})


def load_checkpoint(path: str | Path) -> nn.Module:
    """The network of a produced checkpoint as a plain module, in float32, on the CPU, in eval mode.

    Raises:
        CheckpointError: the file is no checkpoint, or is damaged.
        OSError: the file cannot be opened.
    """
    architecture = read_checkpoint_metadata(path)["architecture"]
    try:
        return load_network(architecture, path)
    except (ArchitectureError, WeightsError) as error:
        raise CheckpointError(f"The checkpoint is damaged: {error.message}", hint=error.hint) from error


def read_checkpoint_metadata(path: str | Path) -> dict[str, Any]:
    """The fields `format`, `architecture` and `extra` of a checkpoint, without reading its tensors.

    Raises:
        CheckpointError: the file is no checkpoint of this format.
        OSError: the file cannot be opened.
    """
    content = read_json_metadata(Path(path), _KEY, CheckpointError)
    if content is None:
        raise CheckpointError(
            "The file has no architecture.", hint="Load it as weights, with an architecture of yours."
        )
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.keys() != _FIELDS:
        raise CheckpointError(
            f"The checkpoint's metadata is {show(content)}.",
            hint=f"Read it with a release that knows its format; this one knows {FORMAT}.",
        )
    return content


def _check_readable(wanted: dict[str, Tensor], tensors: dict[str, Tensor]) -> None:
    for name in wanted.keys() ^ tensors.keys():
        raise CheckpointError(f"Tensor {name} belongs to no layer that is called.", hint="Remove unused layers first.")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise CheckpointError(
                f"Tensor {name} is {list(tensor.shape)}, but its layer says {list(wanted[name].shape)}.",
                hint="Set the layer's sizes to those of its tensors.",
            )
        if not bool(torch.isfinite(tensor).all()):
            raise CheckpointError(f"Tensor {name} holds NaN or infinity.", hint="Mend the training that made it.")

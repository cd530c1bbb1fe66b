"""Makes the files that strangers send and nobody should read: each function writes one of them to a path."""

import gzip
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

MARKER = "unpickled-by-mistake"
"""Name of the file that `code_in_pickle` creates in the working folder when anything runs it."""


class _RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (MARKER,)


def safetensors_bytes(header: Any, data: bytes = b"", claimed: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + data


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def zip_of(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def _writes(content: bytes) -> Callable[[Path], None]:
    return lambda path: _write(path, content)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _good_state_dict(path: Path) -> None:
    torch.save({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, path)


def truncated_state_dict(path: Path) -> None:
    _good_state_dict(path)
    path.write_bytes(path.read_bytes()[:-200])


def corrupt_pickle(path: Path) -> None:
    zip_of(path, {"archive/data.pkl": b"\x80\x02}q\x00(X\xff\xff\xff\x7f", "archive/version": b"3\n"})


def code_in_pickle(path: Path) -> None:
    zip_of(path, {"archive/data.pkl": pickle.dumps({"w": _RunsCode()}, protocol=2), "archive/version": b"3\n"})


def code_in_new_pickle(path: Path) -> None:
    zip_of(path, {"archive/data.pkl": pickle.dumps({"w": _RunsCode()}, protocol=4), "archive/version": b"3\n"})


def two_pickles(path: Path) -> None:
    honest = pickle.dumps({}, protocol=2)
    hostile = pickle.dumps({"w": _RunsCode()}, protocol=2)
    zip_of(path, {"archive/data.pkl": honest, "archive/DATA.PKL": hostile, "archive/version": b"3\n"})


def memory_bomb_in_pickle(path: Path) -> None:
    body = b"\x80\x02cbuiltins\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R."
    zip_of(path, {"archive/data.pkl": body, "archive/version": b"3\n"})


def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"w": _RunsCode()}, protocol=2))


def legacy_state_dict(path: Path) -> None:
    torch.save({"weight": torch.ones(2, 3)}, path, _use_new_zipfile_serialization=False)


def pickled_module(path: Path) -> None:
    torch.save(nn.Linear(3, 2), path)


def pickled_numpy(path: Path) -> None:
    torch.save({"state_dict": {}, "when": np.float64(3.0)}, path)


def torchscript(path: Path) -> None:
    zip_of(path, {"net/data.pkl": b"", "net/code/__torch__.py": b"", "net/constants.pkl": b"", "net/version": b"3\n"})


def exported_program(path: Path) -> None:
    zip_of(path, {"net/archive_format": b"pt2", "net/models/model.json": b"{}", "net/version": b"3\n"})


def zip_bomb_state_dict(path: Path) -> None:
    zip_of(path, {"archive/data.pkl": b"\x80\x02}.", "archive/data/0": bytes(10_000_000)}, zipfile.ZIP_DEFLATED)


def repeated_values(path: Path) -> None:
    torch.save({"weight": torch.ones(1).expand(10_000, 10_000)}, path)


def overlapping_tensors(path: Path) -> None:
    shared = torch.ones(10_000)
    torch.save({f"weight{number}": shared for number in range(10)}, path)


def sparse_tensor(path: Path) -> None:
    torch.save({"weight": torch.ones(2, 3).to_sparse()}, path)


def not_tensors(path: Path) -> None:
    torch.save({"weight": torch.ones(2, 3), "epoch": 7}, path)


def list_of_tensors(path: Path) -> None:
    torch.save([torch.ones(2, 3)], path)


def other_zip(path: Path) -> None:
    np.savez(path.with_suffix(".npz"), x=np.ones(3))
    path.with_suffix(".npz").replace(path)


BAD_WEIGHTS: dict[str, Callable[[Path], None]] = {
    "empty": _writes(b""),
    "text": _writes(b"weights: yes\n"),
    "gzip": _writes(gzip.compress(b"weights")),
    "hdf5": _writes(b"\x89HDF\r\n\x1a\n" + bytes(100)),
    "onnx": _writes(b"\x08\x07\x12\x07pytorch"),
    "safetensors_header_bomb": _writes(safetensors_bytes({}, claimed=2**40)),
    "safetensors_header_beyond_file": _writes(safetensors_bytes({}, claimed=1000)),
    "safetensors_truncated": _writes(safetensors_bytes({"weight": entry([2, 3], 0, 24)}, bytes(23))),
    "safetensors_trailing": _writes(safetensors_bytes({"weight": entry([2, 3], 0, 24)}, bytes(25))),
    "safetensors_overlap": _writes(safetensors_bytes({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12))),
    "safetensors_hole": _writes(safetensors_bytes({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, bytes(20))),
    "safetensors_false_shape": _writes(safetensors_bytes({"weight": entry([3, 3], 0, 24)}, bytes(24))),
    "safetensors_overflowing_shape": _writes(safetensors_bytes({"weight": entry([2**62, 8], 0, 0)})),
    "safetensors_nested_header": _writes(safetensors_bytes(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}")),
    "safetensors_many_tensors": _writes(
        safetensors_bytes({str(number): entry([0], 0, 0) for number in range(100_001)}),
    ),
    "truncated_state_dict": truncated_state_dict,
    "corrupt_pickle": corrupt_pickle,
    "code_in_pickle": code_in_pickle,
    "code_in_new_pickle": code_in_new_pickle,
    "two_pickles": two_pickles,
    "memory_bomb_in_pickle": memory_bomb_in_pickle,
    "bare_pickle": bare_pickle,
    "legacy_state_dict": legacy_state_dict,
    "pickled_module": pickled_module,
    "pickled_numpy": pickled_numpy,
    "torchscript": torchscript,
    "exported_program": exported_program,
    "zip_bomb_state_dict": zip_bomb_state_dict,
    "repeated_values": repeated_values,
    "overlapping_tensors": overlapping_tensors,
    "sparse_tensor": sparse_tensor,
    "not_tensors": not_tensors,
    "list_of_tensors": list_of_tensors,
    "other_zip": other_zip,
}
"""Files that no weights reader may accept, whatever the architecture."""

UNSAFE_WEIGHTS = frozenset(
    {
        "code_in_pickle", "code_in_new_pickle", "memory_bomb_in_pickle", "bare_pickle", "legacy_state_dict",
        "pickled_module", "pickled_numpy", "torchscript", "exported_program", "sparse_tensor",
    }
)  # fmt: skip
"""Those of them that could only be read by running, or trusting, code that they name."""

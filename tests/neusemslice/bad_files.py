"""Makes the files that strangers send and nobody should read: each function writes one of them to a path."""

import gzip
import io
import json
import os
import pickle
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
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


# Datasets


def png(width: int = 4, height: int = 3, mode: str = "RGB", shade: int = 0) -> bytes:
    """A small image file of one shade."""
    buffer = io.BytesIO()
    Image.new(mode, (width, height), shade if mode in ("L", "I;16") else (shade,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def huge_png() -> bytes:
    """A header that claims 60,000 x 60,000 pixels."""
    start = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + start + struct.pack(">I", zlib.crc32(start)) + bytes(40)


def tar_of(path: Path, entries: dict[str, bytes | tarfile.TarInfo], mode: str = "w") -> None:
    """A tar archive; an entry given as TarInfo is a special one without content."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in entries.items():
            if isinstance(content, tarfile.TarInfo):
                content.name = name
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def _special(kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type = kind
    info.linkname = target
    return info


GOOD_IMAGES: dict[str, bytes] = {"train/cat/1.png": png(), "train/dog/1.png": png(shade=9)}


def _images(more: dict[str, bytes]) -> Callable[[Path], None]:
    return lambda path: zip_of(path, {**GOOD_IMAGES, **more})


def _only_images(entries: dict[str, bytes]) -> Callable[[Path], None]:
    return lambda path: zip_of(path, entries)


def _tar_images(more: dict[str, bytes | tarfile.TarInfo]) -> Callable[[Path], None]:
    return lambda path: tar_of(path, {**GOOD_IMAGES, **more})


def zip_with_link(path: Path) -> None:
    zip_of(path, GOOD_IMAGES)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("train/cat/link.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")


def zip_nameless(path: Path) -> None:
    zip_of(path, {"@": b"no image"})
    path.write_bytes(path.read_bytes().replace(b"@", b"\0"))  # in both of the places where a zip keeps names


def zip_encrypted(path: Path) -> None:
    zip_of(path, GOOD_IMAGES)
    content = bytearray(path.read_bytes())
    first = content.index(b"PK\x01\x02")
    content[first + 8] |= 1
    path.write_bytes(content)


def zip_bzip2(path: Path) -> None:
    zip_of(path, GOOD_IMAGES, zipfile.ZIP_BZIP2)


def zip_twice(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "w") as archive:
            for shade in (0, 1):
                archive.writestr("train/cat/1.png", png(shade=shade))


def zip_bomb_images(path: Path) -> None:
    zeros = bytes(60_000_000)
    zip_of(path, {f"train/cat/{number}.png": zeros for number in range(2)}, zipfile.ZIP_DEFLATED)


def zip_truncated(path: Path) -> None:
    zip_of(path, GOOD_IMAGES)
    path.write_bytes(path.read_bytes()[:-30])


def zip_false_checksum(path: Path) -> None:
    zip_of(path, GOOD_IMAGES)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 6] ^= 255
    path.write_bytes(content)


def tar_gz_bomb(path: Path) -> None:
    """Each entry is small enough and of a kind that is skipped: it is the walk over them that must stop."""
    zeros = bytes(60_000_000)
    tar_of(path, {"train/cat/.hidden": zeros, "train/cat/.other": zeros, **GOOD_IMAGES}, "w:gz")


def tar_truncated(path: Path) -> None:
    _tar_images({})(path)
    path.write_bytes(path.read_bytes()[:1024])


def tar_gz_truncated(path: Path) -> None:
    tar_of(path, GOOD_IMAGES, "w:gz")
    path.write_bytes(path.read_bytes()[:-20])


def tar_huge_header(path: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type = tarfile.XHDTYPE
    info.size = 2**36
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))


def _tar_negative(path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("train/cat/1.png")
    info.type = kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT)[:512])
    header[124:136] = b"\xff" * 10 + (2**16 - 512).to_bytes(2, "big")
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    path.write_bytes(bytes(header) + bytes(10_240))


def tar_negative_size(path: Path) -> None:
    """An entry of negative size, which would send tarfile round for ever."""
    _tar_negative(path, tarfile.REGTYPE)


def tar_negative_name(path: Path) -> None:
    """A long name of negative length, for which tarfile would read the whole file at once."""
    _tar_negative(path, tarfile.GNUTYPE_LONGNAME)


def arrays_of(path: Path, **arrays: Any) -> None:
    """An .npz file at a path of any name."""
    with path.open("wb") as file:
        np.savez(file, **arrays)


X = np.arange(24, dtype=np.uint8).reshape(4, 2, 3)
Y = np.array([0, 1, 0, 1])


def _arrays(**arrays: Any) -> Callable[[Path], None]:
    return lambda path: arrays_of(path, **arrays)


def npy(descr: str, shape: str, data: bytes = b"") -> bytes:
    """An array file with a header as told."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


def _npz_with(x_train: bytes) -> Callable[[Path], None]:
    labels = io.BytesIO()
    np.save(labels, Y)
    return lambda path: zip_of(path, {"x_train.npy": x_train, "y_train.npy": labels.getvalue()})


def npz_false_checksum(path: Path) -> None:
    arrays_of(path, x_train=np.arange(40_000).astype(np.uint8).reshape(4, -1), y_train=Y)
    content = bytearray(path.read_bytes())
    content[content.index(bytes(range(10)))] ^= 255
    path.write_bytes(content)


def _tensors(header: Any, size: int) -> Callable[[Path], None]:
    return _writes(safetensors_bytes(header, bytes(size)))


BAD_DATASETS: dict[str, Callable[[Path], None]] = {
    "empty": _writes(b""),
    "text": _writes(b"label,pixel\n1,2\n"),
    "hdf5": _writes(b"\x89HDF\r\n\x1a\n" + bytes(600)),
    "gzip_of_text": _writes(gzip.compress(b"label,pixel\n" * 100)),
    "zip_parent": _images({"train/../../evil.png": png()}),
    "zip_absolute": _images({"/etc/evil.png": png()}),
    "zip_drive": _images({"C:/evil.png": png()}),
    "zip_backslash": _images({"train\\cat\\evil.png": png()}),
    "zip_nameless": zip_nameless,
    "zip_with_link": zip_with_link,
    "zip_encrypted": zip_encrypted,
    "zip_bzip2": zip_bzip2,
    "zip_twice": zip_twice,
    "zip_bomb_images": zip_bomb_images,
    "zip_truncated": zip_truncated,
    "zip_false_checksum": zip_false_checksum,
    "zip_empty": _only_images({}),
    "zip_nested": _images({"train/cat/more.zip": b"PK\x03\x04"}),
    "zip_stray_image": _images({"evil.png": png()}),
    "zip_without_classes": _only_images({"train/1.png": png(), "test/1.png": png()}),
    "zip_without_train": _only_images({"test/cat/1.png": png()}),
    "zip_val_and_test": _images({"val/cat/1.png": png(), "test/cat/1.png": png()}),
    "zip_other_classes": _images({"test/cat/1.png": png()}),
    "image_sizes": _images({"train/cat/2.png": png(5, 5)}),
    "image_huge": _images({"train/cat/2.png": huge_png()}),
    "image_text": _images({"train/cat/2.png": b"no image"}),
    "image_truncated": _images({"train/cat/2.png": png(400, 300)[:-100]}),
    "image_16_bit": _images({"train/cat/2.png": png(mode="I;16")}),
    "tar_parent": _tar_images({"../evil.png": png()}),
    "tar_absolute": _tar_images({"/etc/evil.png": png()}),
    "tar_symbolic_link": _tar_images({"train/cat/2.png": _special(tarfile.SYMTYPE)}),
    "tar_hard_link": _tar_images({"train/cat/2.png": _special(tarfile.LNKTYPE)}),
    "tar_fifo": _tar_images({"train/cat/2.png": _special(tarfile.FIFOTYPE)}),
    "tar_device": _tar_images({"train/cat/2.png": _special(tarfile.CHRTYPE)}),
    "tar_gz_bomb": tar_gz_bomb,
    "tar_truncated": tar_truncated,
    "tar_gz_truncated": tar_gz_truncated,
    "tar_huge_header": tar_huge_header,
    "tar_negative_size": tar_negative_size,
    "tar_negative_name": tar_negative_name,
    "npz_objects": _arrays(x_train=np.array([{}, {}, {}, {}]), y_train=Y),
    "npz_object_labels": _arrays(x_train=X, y_train=np.array([None] * 4)),
    "npz_unlabelled": _arrays(x_train=X),
    "npz_untested": _arrays(x_train=X, y_train=Y, x_test=X),
    "npz_unknown_array": _arrays(x_train=X, y_train=Y, x_val=X),
    "npz_negative_label": _arrays(x_train=X, y_train=Y - 1),
    "npz_float_labels": _arrays(x_train=X, y_train=Y / 2),
    "npz_one_hot": _arrays(x_train=X, y_train=np.eye(4)),
    "npz_immense_label": _arrays(x_train=X, y_train=Y + 2**40),
    "npz_gap": _arrays(x_train=X, y_train=Y * 2),
    "npz_lengths": _arrays(x_train=X, y_train=Y[:3]),
    "npz_no_samples": _arrays(x_train=X[:0], y_train=Y[:0]),
    "npz_no_pixels": _arrays(x_train=X[:, :0], y_train=Y),
    "npz_nan": _arrays(x_train=np.full((4, 3), np.nan), y_train=Y),
    "npz_beyond_float32": _arrays(x_train=np.full((4, 3), 1e300), y_train=Y),
    "npz_complex": _arrays(x_train=np.ones((4, 3), complex), y_train=Y),
    "npz_text": _arrays(x_train=np.array([["a"]] * 4), y_train=Y),
    "npz_five_axes": _arrays(x_train=np.ones((4, 1, 1, 1, 1)), y_train=Y),
    "npz_other_test_shape": _arrays(x_train=X, y_train=Y, x_test=X[:, :1], y_test=Y),
    "npz_other_test_type": _arrays(x_train=X, y_train=Y, x_test=X / 2, y_test=Y),
    "npz_unnamed_class": _arrays(x_train=X, y_train=Y, class_names=np.array(["cat"])),
    "npz_number_names": _arrays(x_train=X, y_train=Y, class_names=np.array([1, 2])),
    "npz_claims_more": _npz_with(npy("'<f4'", "(4, 1000000000000)", bytes(16))),
    "npz_negative_shape": _npz_with(npy("'|u1'", "(-1, -4)", bytes(4))),
    "npz_calls": _npz_with(npy("__import__('os').mkdir('unpickled-by-mistake')", "(4,)")),
    "npz_nested_header": _npz_with(npy("'|u1'", "-" * 9000 + "1")),
    "npz_unclosed_header": _npz_with(npy("'|u1", "(")),
    "npz_false_checksum": npz_false_checksum,
    "tensors_misnamed": _tensors({"images": entry([4], 0, 4, "U8"), "labels": entry([4], 4, 8, "U8")}, 8),
    "tensors_bfloat16": _tensors({"inputs": entry([4, 1], 0, 8, "BF16"), "labels": entry([4], 8, 12, "U8")}, 12),
    "tensors_gap": _tensors({"inputs": entry([4, 1], 0, 4, "U8"), "labels": entry([3], 4, 7, "U8")}, 7),
    "tensors_empty": _tensors({"inputs": entry([0, 2**60], 0, 0, "U8"), "labels": entry([0], 0, 0, "U8")}, 0),
    "tensors_truncated": _tensors({"inputs": entry([4, 1], 0, 4, "U8"), "labels": entry([4], 4, 8, "U8")}, 7),
}
"""Files that no dataset import may accept, whatever the preprocessing."""

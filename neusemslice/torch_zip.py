"""Reads the zip files of `torch.save(model.state_dict(), ...)` from strangers.

The zip's directory and the globals its pickle names are checked first: only what a state dict needs is let through.
Then `torch.load(weights_only=True)` reads it; there is no second try with anything laxer.
"""

import pickletools
import zipfile
from pathlib import Path
from typing import Any

import torch

from neusemslice.errors import UnsafeFileError, WeightsError
from neusemslice.layer_types import show
from neusemslice.safetensors_file import MAX_TENSORS
from neusemslice.zip_file import DAMAGED_ZIP, open_zip

SAVE_STATE_DICT = 'Save the state dict alone: torch.save(model.state_dict(), "weights.pt").'

_PICKLE_BYTES = 1_000_000
_PICKLE_BYTES_PER_RECORD = 500
_GLOBALS = frozenset(
    {
        "collections OrderedDict",
        "torch Size",
        "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_tensor_v2",
        "torch._utils _rebuild_tensor_v3",
        "torch.storage UntypedStorage",
    }
)


def read_torch_zip(path: Path) -> Any:
    """What the file holds: tensors in plain containers.

    Raises:
        UnsafeFileError: the file is a pickled module, TorchScript or an exported program.
        WeightsError: the file is damaged, or no zip that torch.save wrote.
    """
    with open_zip(path, MAX_TENSORS, WeightsError) as archive:
        record = _pickle_record(archive, path.stat().st_size)
        try:
            _check_globals(archive.read(record))
        except DAMAGED_ZIP as error:
            raise _damaged(error) from error
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # the reader raises whatever a false pickle leads it into
        raise _damaged(error) from error


def _damaged(error: Exception) -> WeightsError:
    reason = str(error).split("\n", 1)[0]
    return WeightsError(f"The torch file cannot be read: {reason}.", hint=SAVE_STATE_DICT)


def _pickle_record(archive: zipfile.ZipFile, file_size: int) -> zipfile.ZipInfo:
    """The record of the state dict's pickle, when the zip's directory is that of a state dict."""
    records = archive.infolist()
    names = [record.filename.lower() for record in records]  # torch's zip reader tells no case apart
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        raise UnsafeFileError("The file is a TorchScript archive, which is a program.", hint=SAVE_STATE_DICT)
    if any(
        name.endswith(("archive_format", "models/model.json", "serialized_exported_program.json")) for name in names
    ):
        raise UnsafeFileError("The file is an exported program (.pt2), which is code.", hint=SAVE_STATE_DICT)
    pickles = [
        record for record in records if record.filename.count("/") == 1 and record.filename.endswith("/data.pkl")
    ]
    if len(pickles) != 1 or len(set(names)) != len(names):
        raise WeightsError("The file is a zip, but torch.save did not write it.", hint=SAVE_STATE_DICT)
    if any(record.compress_type != zipfile.ZIP_STORED or record.flag_bits & 1 for record in records):
        raise WeightsError("The zip is compressed or encrypted, as torch.save never writes it.", hint=SAVE_STATE_DICT)
    if sum(record.file_size for record in records) > file_size:
        raise WeightsError("The zip's records claim more bytes than the file has.", hint=SAVE_STATE_DICT)
    if pickles[0].file_size > _PICKLE_BYTES + _PICKLE_BYTES_PER_RECORD * len(records):
        raise WeightsError(
            f"The file's pickle has {pickles[0].file_size:,} bytes for {len(records):,} records.", hint=SAVE_STATE_DICT
        )
    return pickles[0]


def _check_globals(pickle: bytes) -> None:
    """Refuse a pickle that names anything but what a state dict is made of; nothing is unpickled here."""
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise UnsafeFileError(f"The pickle uses {opcode.name}, which state dicts do not.", hint=SAVE_STATE_DICT)
        if opcode.name == "GLOBAL" and argument not in _GLOBALS and not _is_storage_or_dtype(str(argument)):
            raise UnsafeFileError(
                f"The pickle asks for {show(str(argument).replace(' ', '.'))}: it holds more than tensors.",
                hint=SAVE_STATE_DICT,
            )


def _is_storage_or_dtype(name: str) -> bool:
    module, _, member = name.partition(" ")
    if module != "torch":
        return False
    return member.endswith("Storage") or isinstance(getattr(torch, member, None), torch.dtype)

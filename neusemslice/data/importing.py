"""From a stranger's dataset file to the canonical one."""

import zipfile
from pathlib import Path

from neusemslice.data.canonical import write_canonical
from neusemslice.data.facts import DatasetFacts
from neusemslice.data.imagefolder import read_imagefolder
from neusemslice.data.limits import ImportLimits
from neusemslice.data.npz import read_npz
from neusemslice.data.preprocess import Preprocess
from neusemslice.data.source import Source
from neusemslice.data.tensors import read_tensors
from neusemslice.errors import ConfigError, DatasetError
from neusemslice.progress import OnProgress, Progress, ShouldStop
from neusemslice.safetensors_file import looks_like_safetensors
from neusemslice.zip_file import open_zip

FORMATS = ("auto", "npz", "imagefolder", "safetensors")

_ACCEPTED = "Send .npz, .safetensors, or images in a .zip, .tar or .tar.gz archive."


def import_dataset(
    source: str | Path,
    destination: str | Path,
    *,
    format: str = "auto",  # noqa: A002 - the word users know it by
    preprocess: Preprocess | None = None,
    limits: ImportLimits = ImportLimits(),
    on_progress: OnProgress | None = None,
    should_stop: ShouldStop | None = None,
) -> DatasetFacts:
    """Convert a dataset to one canonical safetensors file, which `open_dataset` maps.

    Memory is bounded: samples go from the source into the file block by block. Nothing is unpickled, and no archive
    entry is ever written under its own name. Free of torch.

    Args:
        source: the file to read; its format is told by its content.
        destination: the file to write, whole or not at all.
        format: what the file must be; "auto" takes any.
        preprocess: resizing done now, and normalisation kept for every batch.
        limits: caps on what the file may ask for.
        on_progress: called with stage "index" (image archives) or "import", done, total.
        should_stop: asked now and then.

    Returns:
        What is known about the dataset.

    Raises:
        DatasetError: the file is damaged, unsafe, too large, of another format, or no dataset; the message names the
            entry or array.
        ConfigError: format is unknown, or preprocess contradicts the data.
        StoppedError: should_stop() returned true.
        OSError: a file cannot be read or written.
    """
    if format not in FORMATS:
        raise ConfigError(f"format={format!r:.80} is unknown.", field="format", hint=f"Use {', '.join(FORMATS)}.")
    preprocess = preprocess or Preprocess()
    progress = Progress(on_progress, should_stop)
    content = _read(Path(source), format, preprocess, limits, progress)
    preprocess.check_channels(content.sample_shape[0])
    return write_canonical(content, preprocess, Path(destination), limits, progress)


def _read(path: Path, wanted: str, preprocess: Preprocess, limits: ImportLimits, progress: Progress) -> Source:
    found = _format_of(path, limits)
    if wanted not in ("auto", found):
        raise DatasetError(f"The file is of format {found}, not {wanted}.", hint=_ACCEPTED)
    if found == "imagefolder":
        return read_imagefolder(path, preprocess, limits, progress)
    if preprocess.resize is not None:
        raise ConfigError(f"resize is for images, but the file is {found}.", field="resize", hint="Leave it out.")
    return read_npz(path, limits) if found == "npz" else read_tensors(path, limits)


def _format_of(path: Path, limits: ImportLimits) -> str:
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        raise DatasetError("The dataset file is empty.", hint=_ACCEPTED)
    if start.startswith(b"PK"):
        with open_zip(path, limits.max_entries, DatasetError) as archive:
            return "npz" if _holds_arrays(archive) else "imagefolder"
    if start.startswith(b"\x1f\x8b") or start[257:262] == b"ustar":
        return "imagefolder"
    if looks_like_safetensors(path):
        return "safetensors"
    raise DatasetError("The dataset file is of no known format.", hint=_ACCEPTED)


def _holds_arrays(archive: zipfile.ZipFile) -> bool:
    names = archive.namelist()
    return bool(names) and all(name.endswith(".npy") for name in names)

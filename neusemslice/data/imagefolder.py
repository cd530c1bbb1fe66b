"""Reads archives of images laid out as split/class/file or class/file, in any order, under an optional top folder.

Two passes over the archive: the first checks every entry and image header and settles classes, order and size; the
second decodes image by image. Samples are ordered by class and file name, whatever the archive's own order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neusemslice.data.archives import ArchiveFile, walk_archive
from neusemslice.data.images import SUFFIXES, decode_image, probe_image
from neusemslice.data.limits import ImportLimits
from neusemslice.data.preprocess import Preprocess
from neusemslice.data.source import Source
from neusemslice.errors import DatasetError
from neusemslice.progress import Progress

_SPLITS = {"train": "train", "test": "test", "val": "test"}
_JUNK = ("__MACOSX", "Thumbs.db", "desktop.ini")
_LAYOUT = "Lay files out as train/CLASS/FILE and test/CLASS/FILE, or as CLASS/FILE."
_REPORT_EVERY = 500


@dataclass(frozen=True)
class _Index:
    """What the first pass learns."""

    names: list[str]
    grey: bool
    size: tuple[int, int]


def read_imagefolder(path: Path, preprocess: Preprocess, limits: ImportLimits, progress: Progress) -> Source:
    """The dataset in a .zip, .tar or .tar.gz archive of images.

    Raises:
        DatasetError: the archive or an image is damaged or unsafe, the layout is none of the known, the splits differ
            in classes, or images differ in size and there is no `preprocess.resize`.
        StoppedError: the caller asked to stop.
    """
    index = _index(path, preprocess, limits, progress)
    samples = _samples(index.names)
    class_names = _class_names(samples)
    numbers = {name: number for number, name in enumerate(class_names)}
    slots: dict[str, tuple[str, int]] = {}
    labels: dict[str, NDArray[np.int64]] = {}
    for split, members in samples.items():
        members.sort()
        labels[split] = np.array([numbers[category] for category, _ in members], np.int64)
        slots |= {name: (split, row) for row, (_, name) in enumerate(members)}
    shape = (1 if index.grey else 3, *index.size)
    blocks = _decoded(path, preprocess, limits, slots, grey=index.grey)
    return Source(labels, class_names, shape, np.dtype(np.uint8), blocks)


def _files(path: Path, limits: ImportLimits) -> Iterator[ArchiveFile]:
    """The archive's files but for what operating systems leave in folders."""
    for file in walk_archive(path, limits):
        parts = file.name.split("/")
        if not any(part in _JUNK or part.startswith(".") for part in parts):
            yield file


def _index(path: Path, preprocess: Preprocess, limits: ImportLimits, progress: Progress) -> _Index:
    names: dict[str, None] = {}
    grey = True
    first: tuple[str, tuple[int, int]] | None = None
    for file in _files(path, limits):
        if not file.name.lower().endswith(SUFFIXES):
            raise DatasetError(f"Entry {file.name!r:.200} is no image.", hint=f"Keep only {', '.join(SUFFIXES)} files.")
        if file.name in names:
            raise DatasetError(f"Entry {file.name!r:.200} comes twice.", hint="Make the archive again.")
        names[file.name] = None
        height, width, is_grey = probe_image(file.read(), file.name, limits)
        grey = grey and is_grey
        first = first or (file.name, (height, width))
        if preprocess.resize is None and first[1] != (height, width):
            raise DatasetError(
                f"Image {file.name!r:.200} is {height} x {width}, {first[0]!r:.200} is {first[1][0]} x {first[1][1]}.",
                hint="Set preprocess.resize to [height, width].",
            )
        if len(names) % _REPORT_EVERY == 1:
            progress.report("index", file.done, file.total)
    if first is None:
        raise DatasetError("The archive holds no images.", hint=_LAYOUT)
    return _Index(list(names), grey, preprocess.resize or first[1])


def _samples(names: list[str]) -> dict[str, list[tuple[str, str]]]:
    """Split name -> (class, entry name) of each sample."""
    paths = {name: name.split("/") for name in names}
    tops = {parts[0] for parts in paths.values()}
    if len(tops) == 1 and not tops <= _SPLITS.keys() and min(map(len, paths.values())) > 2:
        paths = {name: parts[1:] for name, parts in paths.items()}
    heads = {parts[0] for parts in paths.values()}
    has_splits = heads <= _SPLITS.keys() or any(len(parts) == 3 and parts[0] in _SPLITS for parts in paths.values())
    for name, parts in paths.items():
        if len(parts) != (3 if has_splits else 2) or (has_splits and parts[0] not in _SPLITS):
            raise DatasetError(f"Entry {name!r:.200} is not where an image belongs.", hint=_LAYOUT)
    if not has_splits:
        return {"train": [(parts[0], name) for name, parts in paths.items()]}
    if "train" not in heads or {"test", "val"} <= heads:
        raise DatasetError(
            f"The archive has {'/, '.join(sorted(heads))}/.", hint="Give train/ and at most one of test/, val/."
        )
    samples: dict[str, list[tuple[str, str]]] = {_SPLITS[head]: [] for head in sorted(heads, key="train".__ne__)}
    for name, (head, category, _) in paths.items():
        samples[_SPLITS[head]].append((category, name))
    return samples


def _class_names(samples: dict[str, list[tuple[str, str]]]) -> tuple[str, ...]:
    classes = {split: {category for category, _ in members} for split, members in samples.items()}
    for split, found in classes.items():
        if odd := sorted(found ^ classes["train"]):
            raise DatasetError(
                f"Class {odd[0]!r:.200} is in only one of train and {split}.", hint="Give both splits the same classes."
            )
    return tuple(sorted(classes["train"]))


def _decoded(
    path: Path, preprocess: Preprocess, limits: ImportLimits, slots: dict[str, tuple[str, int]], *, grey: bool
) -> Iterator[tuple[str, int, NDArray[Any]]]:
    for file in _files(path, limits):
        split, row = slots[file.name]
        yield split, row, decode_image(file.read(), file.name, grey=grey, resize=preprocess.resize)[None]

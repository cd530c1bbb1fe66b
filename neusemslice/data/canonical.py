"""The canonical dataset: one safetensors file, written once from a stranger's file and mapped by every job after that.

Tensors y_train, x_train and, where there is a test split, y_test, x_test; labels int64, inputs uint8 or float32,
channels first. Metadata "neusemslice_dataset": {"format": 1, "class_names": [...], "preprocess": {...}}.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neusemslice.data.facts import DatasetFacts
from neusemslice.data.limits import ImportLimits
from neusemslice.data.preprocess import Preprocess
from neusemslice.data.source import SPLITS, Source
from neusemslice.errors import ConfigError, DatasetError
from neusemslice.progress import Progress
from neusemslice.safetensors_file import map_arrays, read_json_metadata, replacing

FORMAT = 1
_KEY = "neusemslice_dataset"
_DTYPES = {"int64": "I64", "uint8": "U8", "float32": "F32"}
_REPORT_EVERY = 1000


def write_canonical(
    source: Source, preprocess: Preprocess, path: Path, limits: ImportLimits, progress: Progress
) -> DatasetFacts:
    """Write the file, block by block, whole or not at all.

    Raises:
        DatasetError: a sample is not finite, or the file would be too large.
        StoppedError: the caller asked to stop.
    """
    metadata = {"format": FORMAT, "class_names": list(source.class_names), "preprocess": preprocess.to_dict()}
    header, starts = _header(source, metadata, limits)
    row_bytes = int(np.prod(source.sample_shape)) * source.dtype.itemsize
    total = sum(map(len, source.labels.values()))
    with replacing(path) as draft:
        with draft.open("xb") as file:
            file.write(header)
            for labels in source.labels.values():
                file.write(labels.tobytes())
            done = 0
            for split, row, rows in source.blocks:
                if rows.dtype.kind == "f" and not np.isfinite(rows).all():
                    raise DatasetError(
                        f"x_{split} holds NaN or infinity near sample {row}.",
                        hint="Clean the inputs before sending them.",
                    )
                file.seek(starts[split] + row * row_bytes)
                file.write(rows.tobytes())
                if done // _REPORT_EVERY != (done + len(rows)) // _REPORT_EVERY:
                    progress.report("import", done + len(rows), total)
                done += len(rows)
        assert done == total  # each source yields every row once
    return read_canonical(path)[0]


def read_canonical(path: Path) -> tuple[DatasetFacts, dict[str, NDArray[Any]]]:
    """What is known about the dataset, and its arrays, mapped.

    Raises:
        DatasetError: the file is no canonical dataset.
    """
    metadata = read_json_metadata(path, _KEY, DatasetError)
    arrays = map_arrays(path, DatasetError)
    try:
        if metadata["format"] != FORMAT:
            raise DatasetError(f"The dataset file has format {metadata['format']!r:.80}.", hint="Import it again.")
        class_names = tuple(map(str, metadata["class_names"]))
        preprocess = Preprocess.from_dict(metadata["preprocess"])
        samples = {
            split: _counts(arrays, split, len(class_names))
            for split in SPLITS
            if split == "train" or {f"x_{split}", f"y_{split}"} & arrays.keys()
        }
    except (ConfigError, KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"The file is no imported dataset: {error!s:.200}.", hint="Import it first.") from error
    shape = arrays["x_train"].shape[1:]
    return DatasetFacts(input_shape=shape, class_names=class_names, samples=samples, preprocess=preprocess), arrays


def _counts(arrays: dict[str, NDArray[Any]], split: str, categories: int) -> tuple[int, ...]:
    """Samples of each category; ValueError or KeyError unless the split is stored as `write_canonical` does."""
    inputs, labels, like = arrays[f"x_{split}"], arrays[f"y_{split}"], arrays["x_train"]
    paired = labels.dtype == np.int64 and labels.ndim == 1 and len(labels) == len(inputs) > 0
    alike = (inputs.shape[1:], inputs.dtype) == (like.shape[1:], like.dtype)
    if not paired or not alike or inputs.ndim < 2 or inputs.dtype.name not in ("uint8", "float32"):
        raise ValueError(f"its {split} split is not stored as imports are")
    if labels.min() < 0 or labels.max() >= categories:
        raise ValueError(f"its {split} split has labels without a class name")
    return tuple(np.bincount(labels, minlength=categories).tolist())


def _header(source: Source, metadata: dict[str, Any], limits: ImportLimits) -> tuple[bytes, dict[str, int]]:
    """The file's head, and where each split's inputs start; labels come first, so that everything is aligned."""
    entries: dict[str, Any] = {"__metadata__": {_KEY: json.dumps(metadata)}}
    offset = 0
    inputs = {}
    for split, labels in source.labels.items():
        entries[f"y_{split}"] = _entry("int64", labels.shape, offset, offset := offset + labels.nbytes)
    for split, labels in source.labels.items():
        shape = (len(labels), *source.sample_shape)
        inputs[split] = offset
        offset += int(np.prod(shape, dtype=object)) * source.dtype.itemsize
        entries[f"x_{split}"] = _entry(source.dtype.name, shape, inputs[split], offset)
    if offset > limits.max_uncompressed_bytes:
        raise DatasetError(
            f"The dataset has {offset:,} bytes of samples.",
            hint=f"At most {limits.max_uncompressed_bytes:,} are accepted: resize the images, or send fewer.",
        )
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    return head, {split: len(head) + start for split, start in inputs.items()}


def _entry(dtype: str, shape: tuple[int, ...], start: int, end: int) -> dict[str, Any]:
    return {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [start, end]}

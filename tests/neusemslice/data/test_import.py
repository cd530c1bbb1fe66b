import io
import random
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

from neusemslice.data import ImportLimits, Preprocess, import_dataset
from neusemslice.data.archives import _ForwardReader
from neusemslice.errors import ConfigError, DatasetError, NeuSemSliceError, StoppedError
from tests.neusemslice.bad_files import GOOD_IMAGES, arrays_of, png, tar_of, zip_of

CHANCE = np.random.default_rng(0)


def pixels(*shape: int) -> NDArray[np.uint8]:
    return CHANCE.integers(0, 256, shape, dtype=np.uint8)


def written(source: Path, **options: Any) -> dict[str, NDArray[Any]]:
    import_dataset(source, source.with_name("out"), **options)
    return load_file(source.with_name("out"))


LABELS = np.array([0, 1, 0, 1, 2])


@pytest.mark.parametrize(
    ("inputs", "stored"),
    [
        (x := pixels(5, 7), x),
        (x := pixels(5, 6, 7), x[:, None]),
        (x := pixels(5, 6, 7, 3), x.transpose(0, 3, 1, 2)),
        (x := pixels(5, 6, 7, 1), x.transpose(0, 3, 1, 2)),
        (x := pixels(5, 6, 7, 4), x.transpose(0, 3, 1, 2)),
        (x := pixels(5, 3, 6, 7), x),
        (x := pixels(5, 3, 6, 4), x),
        (x := pixels(5, 6, 7, 8), x),
        (x := pixels(5, 7).astype(np.int64) * 1000, x.astype(np.float32)),
        (x := pixels(5, 7).astype(">f8") / 7, x.astype(np.float32)),
        (x := pixels(5, 7).astype(np.float16), x.astype(np.float32)),
        (x := pixels(5, 7) > 99, x.astype(np.float32)),
        (x := np.asfortranarray(pixels(5, 7) / 3), x.astype(np.float32)),
        (x := np.asfortranarray(pixels(5, 6, 7, 3)), x.transpose(0, 3, 1, 2)),
    ],
    ids=str,
)
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_of_every_layout(
    inputs: NDArray[Any], stored: NDArray[Any], save: Callable[..., None], tmp_path: Path
) -> None:
    save(tmp_path / "a.npz", x_train=inputs, y_train=LABELS[:, None].astype(np.uint8), x_test=inputs[:2], y_test=[0, 2])
    arrays = written(tmp_path / "a.npz")
    assert arrays["x_train"].dtype == stored.dtype
    assert np.array_equal(arrays["x_train"], stored)
    assert np.array_equal(arrays["x_test"], stored[:2])
    assert np.array_equal(arrays["y_train"], LABELS)
    assert arrays["y_test"].tolist() == [0, 2]
    assert arrays["y_test"].dtype == np.int64


def test_arrays_larger_than_a_block_arrive_in_order(tmp_path: Path) -> None:
    inputs = np.arange(3_000_000, dtype=np.float32).reshape(3000, 1000)
    np.savez_compressed(tmp_path / "a.npz", x_train=inputs, y_train=np.arange(3000) % 3)
    assert np.array_equal(written(tmp_path / "a.npz")["x_train"], inputs)


def test_memory_stays_bounded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=np.zeros((2000, 50_000), np.uint8), y_train=np.arange(2000) % 2)
    tracemalloc.start()
    import_dataset(tmp_path / "a.npz", tmp_path / "out")
    assert tracemalloc.get_traced_memory()[1] < 30_000_000  # of 100 MB
    tracemalloc.stop()


def test_facts_of_an_import(tmp_path: Path) -> None:
    arrays_of(tmp_path / "a", x_train=pixels(5, 4, 4), y_train=LABELS, class_names=np.array(["cat", "dog", "élan"]))
    preprocess = Preprocess(scale=1 / 255, mean=(0.5,))
    facts = import_dataset(tmp_path / "a", tmp_path / "out", preprocess=preprocess)
    assert facts.input_shape == (1, 4, 4)
    assert facts.class_names == ("cat", "dog", "élan")
    assert facts.samples == {"train": (2, 2, 1)}
    assert facts.preprocess == preprocess


@pytest.mark.parametrize("names", [("inputs", "labels"), ("x_train", "y_train")])
def test_safetensors(names: tuple[str, str], tmp_path: Path) -> None:
    inputs = pixels(5, 6, 7, 3)
    save_file({names[0]: inputs, names[1]: LABELS}, tmp_path / "a.safetensors")
    arrays = written(tmp_path / "a.safetensors", format="safetensors")
    assert np.array_equal(arrays["x_train"], inputs.transpose(0, 3, 1, 2))
    assert np.array_equal(arrays["y_train"], LABELS)


def test_a_written_dataset_can_be_imported_again(tmp_path: Path) -> None:
    arrays_of(tmp_path / "a", x_train=pixels(5, 4, 4), y_train=LABELS, x_test=pixels(3, 4, 4), y_test=LABELS[:3])
    import_dataset(tmp_path / "a", tmp_path / "first")
    import_dataset(tmp_path / "first", tmp_path / "second")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def encoded(image: NDArray[np.uint8], kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def images() -> dict[str, NDArray[np.uint8]]:
    """Not in the order they shall be stored in."""
    return {
        "train/dog/b.png": pixels(4, 5, 3),
        "test/cat/a.png": pixels(4, 5, 3),
        "train/cat/b.png": pixels(4, 5, 3),
        "test/dog/a.bmp": pixels(4, 5, 3),
        "train/dog/a.bmp": pixels(4, 5, 3),
        "train/cat/a.png": pixels(4, 5, 3),
    }


def files_of(images: dict[str, NDArray[np.uint8]]) -> dict[str, bytes]:
    return {name: encoded(image, name[-3:].upper()) for name, image in images.items()}


def tar_gz_of(path: Path, files: dict[str, bytes]) -> None:
    tar_of(path, dict(files), "w:gz")


def plain_tar_of(path: Path, files: dict[str, bytes]) -> None:
    tar_of(path, dict(files))


ARCHIVERS = [zip_of, plain_tar_of, tar_gz_of]


@pytest.mark.parametrize("archive", ARCHIVERS)
def test_image_archives_are_ordered_by_class_and_name(
    archive: Callable[[Path, dict[str, bytes]], None], images: dict[str, NDArray[np.uint8]], tmp_path: Path
) -> None:
    archive(tmp_path / "a", files_of(images))
    facts = import_dataset(tmp_path / "a", tmp_path / "out", format="imagefolder")
    assert facts.class_names == ("cat", "dog")
    assert facts.samples == {"train": (2, 2), "test": (1, 1)}
    arrays = load_file(tmp_path / "out")
    order = ["train/cat/a.png", "train/cat/b.png", "train/dog/a.bmp", "train/dog/b.png"]
    assert np.array_equal(arrays["x_train"], np.stack([images[name].transpose(2, 0, 1) for name in order]))
    assert arrays["y_train"].tolist() == [0, 0, 1, 1]
    assert np.array_equal(arrays["x_test"][1], images["test/dog/a.bmp"].transpose(2, 0, 1))


@pytest.mark.parametrize("archive", ARCHIVERS)
@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"my-data/{name}",
        lambda name: f"./{name}",
        lambda name: name.replace("test/", "val/"),
        lambda name: f"top//{name}",
    ],
)
def test_layouts_that_mean_the_same(
    archive: Callable[[Path, dict[str, bytes]], None],
    rename: Callable[[str], str],
    images: dict[str, NDArray[np.uint8]],
    tmp_path: Path,
) -> None:
    zip_of(tmp_path / "plain", files_of(images))
    junk = dict.fromkeys(["__MACOSX/._a.png", ".DS_Store", "train/cat/.DS_Store", "train/Thumbs.db"], b"junk")
    archive(tmp_path / "other", {rename(name): file for name, file in files_of(images).items()} | junk)
    facts = [import_dataset(tmp_path / name, tmp_path / f"{name}.out") for name in ("plain", "other")]
    assert facts[0] == facts[1]
    assert (tmp_path / "plain.out").read_bytes() == (tmp_path / "other.out").read_bytes()


def test_folders_of_classes_alone_are_a_train_split(tmp_path: Path) -> None:
    zip_of(tmp_path / "a", {"top/": b"", "top/train/1.png": png(), "top/bus/1.png": png()})
    facts = import_dataset(tmp_path / "a", tmp_path / "out")
    assert facts.class_names == ("bus", "train")  # vehicles
    assert facts.samples == {"train": (1, 1)}


def test_grey_stays_grey_unless_a_colour_image_is_among_them(tmp_path: Path) -> None:
    grey = {"cat/1.png": png(mode="L", shade=7), "dog/1.png": png(mode="L", shade=9)}
    zip_of(tmp_path / "a", grey)
    stored = written(tmp_path / "a")["x_train"]
    assert stored.shape == (2, 1, 3, 4)
    assert (stored[0] == 7).all()
    zip_of(tmp_path / "a", {**grey, "dog/2.png": png(shade=5)})
    stored = written(tmp_path / "a")["x_train"]
    assert stored.shape == (3, 3, 3, 4)
    assert (stored[1] == 9).all()


def test_images_are_resized_as_pillow_does(tmp_path: Path) -> None:
    wide, tall = pixels(8, 20, 3), pixels(30, 6, 3)
    zip_of(tmp_path / "a", {"cat/1.png": encoded(wide, "PNG"), "dog/1.png": encoded(tall, "PNG")})
    stored = written(tmp_path / "a", preprocess=Preprocess(resize=(4, 5)))["x_train"]
    oracle = np.asarray(Image.fromarray(wide).resize((5, 4), Image.Resampling.BILINEAR))
    assert np.array_equal(stored[0], oracle.transpose(2, 0, 1))
    assert stored.shape == (2, 3, 4, 5)


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (ImportLimits(max_entries=1), "entries"),
        (ImportLimits(max_entry_bytes=50), "bytes. At most 50 a file"),
        (ImportLimits(max_uncompressed_bytes=100), "At most 100"),
        (ImportLimits(max_image_pixels=11), "has 4 x 3 pixels. At most 11"),
        (ImportLimits(ratio_free_bytes=0, max_ratio=0), "At most 0 times"),
    ],
)
@pytest.mark.parametrize("archive", ARCHIVERS)
def test_archive_limits(
    archive: Callable[[Path, dict[str, bytes]], None], limits: ImportLimits, says: str, tmp_path: Path
) -> None:
    archive(tmp_path / "a", GOOD_IMAGES)
    import_dataset(tmp_path / "a", tmp_path / "fine")
    with pytest.raises(DatasetError) as caught:
        import_dataset(tmp_path / "a", tmp_path / "out", limits=limits)
    if limits.max_entry_bytes != 50:  # a tar's own headers are blocks of 512 bytes
        assert says in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (ImportLimits(max_samples=4), "x_train has 5 samples"),
        (ImportLimits(max_sample_elements=15), r"One sample of x_train is \[1, 4, 4\]"),
        (ImportLimits(max_categories=2), "y_train holds label 2"),
        (ImportLimits(max_whole_array_bytes=39), "y_train must be read at once and has 40 bytes"),
        (ImportLimits(max_uncompressed_bytes=300), "unpacks to"),
        (ImportLimits(max_entries=1), "has 2 entries"),
    ],
)
def test_array_limits(limits: ImportLimits, says: str, tmp_path: Path) -> None:
    arrays_of(tmp_path / "a", x_train=pixels(5, 4, 4), y_train=LABELS)
    with pytest.raises(DatasetError, match=says):
        import_dataset(tmp_path / "a", tmp_path / "out", limits=limits)


def test_resizing_cannot_blow_the_file_up(tmp_path: Path) -> None:
    zip_of(tmp_path / "a", GOOD_IMAGES)
    limits = ImportLimits(max_uncompressed_bytes=1_000_000)
    with pytest.raises(DatasetError, match="96,000,016 bytes of samples"):
        import_dataset(tmp_path / "a", tmp_path / "out", preprocess=Preprocess(resize=(4000, 4000)), limits=limits)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"format": "imagefolder"}, "of format npz, not imagefolder"),
        ({"format": "hdf5"}, "format='hdf5' is unknown"),
        ({"preprocess": Preprocess(resize=(2, 2))}, "resize is for images"),
        ({"preprocess": Preprocess(std=(1.0, 1.0))}, "std has 2 values"),
    ],
)
def test_wishes_the_file_contradicts(options: dict[str, Any], says: str, tmp_path: Path) -> None:
    arrays_of(tmp_path / "a", x_train=pixels(5, 4, 4), y_train=LABELS)
    with pytest.raises(NeuSemSliceError, match=says) as caught:
        import_dataset(tmp_path / "a", tmp_path / "out", **options)
    assert isinstance(caught.value, DatasetError | ConfigError)


def test_progress_is_told_and_a_stop_leaves_nothing(tmp_path: Path) -> None:
    tar_of(tmp_path / "a", {f"{category}/{number}.png": png() for category in "ab" for number in range(600)})
    calls: list[tuple[str, int, int]] = []
    import_dataset(tmp_path / "a", tmp_path / "out", on_progress=lambda *call: calls.append(call))
    stages = [stage for stage, _, _ in calls]
    assert stages == ["index"] * 3 + ["import"]
    assert calls[-1] == ("import", 1000, 1200)
    assert all(0 <= done <= total for _, done, total in calls)
    with pytest.raises(StoppedError):
        import_dataset(tmp_path / "a", tmp_path / "other", should_stop=lambda: True)
    stop_while_writing = iter([False] * 3 + [True])
    with pytest.raises(StoppedError):
        import_dataset(tmp_path / "a", tmp_path / "other", should_stop=lambda: next(stop_while_writing))
    assert {file.name for file in tmp_path.iterdir()} == {"a", "out"}


def test_an_import_needs_no_torch(tmp_path: Path) -> None:
    zip_of(tmp_path / "a", GOOD_IMAGES)
    program = (
        "import sys; from neusemslice.data import import_dataset, check_dataset_fits, Preprocess;"
        "import_dataset(sys.argv[1], sys.argv[2]);"
        "print(sorted({'torch', 'torchvision', 'captum'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a"), str(tmp_path / "out")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize("archive", [*ARCHIVERS, lambda path, _: arrays_of(path, x_train=pixels(5, 4), y_train=LABELS)])
def test_any_damage_ends_in_a_typed_error_or_in_a_dataset(archive: Callable[..., None], tmp_path: Path) -> None:
    archive(tmp_path / "good", GOOD_IMAGES)
    good = (tmp_path / "good").read_bytes()
    chance = random.Random(1)
    refused = 0
    for _ in range(150):
        damaged = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        (tmp_path / "damaged").write_bytes(damaged[: chance.choice([len(damaged), chance.randrange(len(damaged))])])
        try:
            import_dataset(tmp_path / "damaged", tmp_path / "out")
        except DatasetError:
            refused += 1
    assert refused > 50


def test_a_tar_is_read_forwards_only() -> None:
    reader = _ForwardReader(io.BytesIO(bytes(4096)), 4096, ImportLimits())
    reader.seek(1024)
    with pytest.raises(tarfile.ReadError, match="backwards"):
        reader.seek(512)
    assert reader.tell() == 1024

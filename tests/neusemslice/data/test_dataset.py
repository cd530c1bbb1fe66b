import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from neusemslice.data import Dataset, Preprocess, import_dataset, open_dataset
from neusemslice.errors import ConfigError, DatasetError
from tests.neusemslice.bad_files import BAD_WEIGHTS, arrays_of

X = np.random.default_rng(0).integers(0, 256, (11, 3, 4, 5), dtype=np.uint8)
Y = np.array([2, 0, 1, 0, 0, 2, 1, 0, 2, 2, 2])


def dataset(folder: Path, preprocess: Preprocess | None = None) -> Dataset:
    arrays_of(folder / "a", x_train=X, y_train=Y, x_test=X[:4], y_test=Y[:4])
    import_dataset(folder / "a", folder / "out", preprocess=preprocess)
    return open_dataset(folder / "out")


def test_batches_are_normalised_and_in_file_order(tmp_path: Path) -> None:
    preprocess = Preprocess(scale=1 / 255, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3))
    data = dataset(tmp_path, preprocess)
    assert data.splits == ("train", "test")
    assert data.facts.samples == {"train": (4, 2, 5), "test": (2, 1, 1)}
    batches = data.batches("train", 4)
    inputs = torch.cat([batch for batch, _ in batches])
    labels = torch.cat([batch for _, batch in batches])
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    oracle = (X.astype(np.float64) / 255 - mean) / std
    assert inputs.dtype == torch.float32
    assert np.abs(inputs.numpy() - oracle).max() < 2e-6
    assert labels.dtype == torch.int64
    assert labels.tolist() == Y.tolist()
    assert [len(batch) for _, batch in batches] == [4, 4, 3]
    assert len(batches) == 3


def test_batches_can_be_taken_again_and_changed_freely(tmp_path: Path) -> None:
    batches = dataset(tmp_path).batches("test", 3)
    for inputs, labels in batches:
        inputs.zero_()
        labels.zero_()
    again = torch.cat([inputs for inputs, _ in batches])
    assert torch.equal(again, torch.from_numpy(X[:4]).float())


def test_one_value_normalises_every_channel(tmp_path: Path) -> None:
    ((inputs, _),) = dataset(tmp_path, Preprocess(mean=(100.0,), std=(50.0,))).batches("train", 11)
    assert torch.equal(inputs, (torch.from_numpy(X).float() - 100) / 50)


def test_features_without_space_are_normalised_too(tmp_path: Path) -> None:
    arrays_of(tmp_path / "a", x_train=X[:, :, 0, 0], y_train=Y)
    import_dataset(tmp_path / "a", tmp_path / "out", preprocess=Preprocess(mean=(1.0, 2.0, 3.0)))
    ((inputs, _),) = open_dataset(tmp_path / "out").batches("train", 11)
    assert torch.equal(inputs, torch.from_numpy(X[:, :, 0, 0]).float() - torch.tensor([1.0, 2.0, 3.0]))


def test_the_limit_takes_the_first_of_each_category(tmp_path: Path) -> None:
    batches = dataset(tmp_path).batches("train", 4, limit_per_category=2)
    labels = torch.cat([batch for _, batch in batches])
    inputs = torch.cat([batch for batch, _ in batches])
    rows = [0, 1, 2, 3, 5, 6]
    assert labels.tolist() == Y[rows].tolist()
    assert torch.equal(inputs, torch.from_numpy(X[rows]).float())


def test_a_share_of_each_category_is_held_out(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    left, held = data.hold_out(0.4, 3, seed=1)
    assert np.bincount(Y[held.rows]).tolist() == [2, 1, 2]
    assert sorted([*left.rows, *held.rows]) == list(range(11))
    assert list(held.rows) == sorted(held.rows)
    assert torch.equal(torch.cat([labels for _, labels in held]), torch.from_numpy(Y[held.rows]))
    draws = {tuple(data.hold_out(0.4, 3, seed=seed)[1].rows) for seed in (1, 1, 2, 3, 4, 5)}
    assert tuple(held.rows) in draws
    assert 1 < len(draws) <= 5
    limited, same = data.hold_out(0.4, 3, seed=1, limit_per_category=1)
    assert list(same.rows) == list(held.rows)
    assert set(limited.rows) == {next(row for row in left.rows if Y[row] == category) for category in range(3)}


def test_some_labels_make_a_task_numbered_in_their_order(tmp_path: Path) -> None:
    """2 and 0 become 7 and 8; the samples of 1 are left out, and a limit set before still holds."""
    data = dataset(tmp_path)
    chosen = data.batches("train", 4).numbered([2, 0], first=7)
    assert [label for _, labels in chosen for label in labels.tolist()] == [7, 8, 8, 8, 7, 8, 7, 7, 7]
    inputs = torch.cat([batch for batch, _ in chosen])
    assert torch.equal(inputs, torch.from_numpy(X[Y != 1]).float())
    limited = data.batches("train", 4, limit_per_category=1).numbered([1])
    assert limited.rows.tolist() == [2]
    for labels, words in (([0, 0], "named twice"), ([0, 3], r"labels \[3\]"), ([-1], r"labels \[-1\]")):
        with pytest.raises(ConfigError, match=words):
            data.batches("train", 4).numbered(labels)


def test_a_category_of_one_sample_is_not_held_out(tmp_path: Path) -> None:
    arrays_of(tmp_path / "a", x_train=X[:4], y_train=np.array([0, 1, 1, 1]))
    import_dataset(tmp_path / "a", tmp_path / "out")
    left, held = open_dataset(tmp_path / "out").hold_out(0.99, 4, seed=0)
    assert 0 in left.rows
    assert (len(left.rows), len(held.rows)) == (2, 2)


def test_wrong_wishes_are_refused(tmp_path: Path) -> None:
    data = dataset(tmp_path)
    for call in (
        lambda: data.batches("val", 4),
        lambda: data.batches("train", 0),
        lambda: data.batches("train", 4, limit_per_category=0),
        lambda: data.hold_out(1.0, 4, seed=0),
    ):
        with pytest.raises(ConfigError):
            call()


@pytest.mark.parametrize("name", sorted(BAD_WEIGHTS))
def test_bad_files_are_no_datasets(name: str, tmp_path: Path) -> None:
    BAD_WEIGHTS[name](tmp_path / "file")
    with pytest.raises(DatasetError):
        open_dataset(tmp_path / "file")


GOOD = {"x_train": X, "y_train": Y}
META = {"format": 1, "class_names": ["a", "b", "c"], "preprocess": {}}


@pytest.mark.parametrize(
    ("arrays", "metadata"),
    [
        (GOOD, None),
        (GOOD, []),
        (GOOD, {**META, "format": 2}),
        (GOOD, {**META, "class_names": 3}),
        (GOOD, {**META, "class_names": ["a", "b"]}),
        (GOOD, {**META, "preprocess": {"crop": 1}}),
        (GOOD, {"format": 1}),
        ({"x_train": X}, META),
        ({"y_train": Y}, META),
        ({"x_train": X, "y_train": Y - 1}, META),
        ({"x_train": X, "y_train": Y.astype(np.float32)}, META),
        ({"x_train": X, "y_train": Y[:4]}, META),
        ({"x_train": X.astype(np.int16), "y_train": Y}, META),
        ({**GOOD, "y_test": Y}, META),
        ({**GOOD, "y_test": Y, "x_test": X[:, :1]}, META),
    ],
)
def test_false_datasets_are_refused(arrays: dict[str, np.ndarray], metadata: object, tmp_path: Path) -> None:
    save_file(arrays, tmp_path / "file", None if metadata is None else {"neusemslice_dataset": json.dumps(metadata)})
    with pytest.raises(DatasetError):
        open_dataset(tmp_path / "file")

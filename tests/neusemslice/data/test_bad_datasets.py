import re
from pathlib import Path

import pytest

from neusemslice.data import import_dataset
from neusemslice.errors import DatasetError
from tests.neusemslice.bad_files import BAD_DATASETS, MARKER

SAYS = {
    "empty": "empty",
    "text": "no known format",
    "hdf5": "no known format",
    "gzip_of_text": "damaged",
    "zip_parent": "'train/../../evil.png' has an unsafe name",
    "zip_absolute": "'/etc/evil.png' has an unsafe name",
    "zip_drive": "'C:/evil.png' has an unsafe name",
    "zip_backslash": "unsafe name",
    "zip_nameless": "'' has an unsafe name",
    "zip_with_link": "'train/cat/link.png' is a link",
    "zip_encrypted": "'train/cat/1.png' is encrypted",
    "zip_bzip2": "compression method 12",
    "zip_twice": "'train/cat/1.png' comes twice",
    "zip_bomb_images": "unpack to 120,000,000",
    "zip_truncated": "damaged",
    "zip_false_checksum": "'train/cat/1.png' is damaged: Bad CRC-32",
    "zip_empty": "no images",
    "zip_nested": "'train/cat/more.zip' is no image",
    "zip_stray_image": "'evil.png' is not where an image belongs",
    "zip_without_classes": "'train/1.png' is not where an image belongs",
    "zip_without_train": "has test/. Give train/",
    "zip_val_and_test": "has test/, train/, val/. Give train/",
    "zip_other_classes": "Class 'dog' is in only one of train and test",
    "image_sizes": "'train/cat/2.png' is 5 x 5, 'train/cat/1.png' is 3 x 4. Set preprocess.resize",
    "image_huge": "'train/cat/2.png'",
    "image_text": "'train/cat/2.png' cannot be decoded",
    "image_truncated": "'train/cat/2.png'",
    "image_16_bit": "mode I;16. Convert it to 8-bit",
    "tar_parent": "'../evil.png' has an unsafe name",
    "tar_absolute": "'/etc/evil.png' has an unsafe name",
    "tar_symbolic_link": "'train/cat/2.png' is a link",
    "tar_hard_link": "'train/cat/2.png' is a link",
    "tar_fifo": "'train/cat/2.png' is a link, device",
    "tar_device": "'train/cat/2.png' is a link, device",
    "tar_gz_bomb": "At most 200 times",
    "tar_truncated": "ends in the middle",
    "tar_gz_truncated": "damaged",
    "tar_huge_header": "asks for 68,719,476,736 bytes",
    "tar_negative_size": "'train/cat/1.png' has -512 bytes",
    "tar_negative_name": "asks for -512 bytes",
    "npz_objects": "x_train holds Python objects",
    "npz_object_labels": "y_train holds Python objects",
    "npz_unlabelled": "lacks y_train",
    "npz_untested": "lacks y_test",
    "npz_unknown_array": "unknown array 'x_val'",
    "npz_negative_label": "y_train holds label -1",
    "npz_float_labels": "y_train is float64",
    "npz_one_hot": "y_train has shape [4, 4]",
    "npz_immense_label": "y_train holds label 1099511627777",
    "npz_gap": "Category 1 has no samples in the train split",
    "npz_lengths": "4 samples and 3 labels",
    "npz_no_samples": "x_train has shape [0, 2, 3]",
    "npz_no_pixels": "x_train has shape [4, 0, 3]",
    "npz_nan": "x_train holds NaN",
    "npz_beyond_float32": "x_train holds NaN or infinity",
    "npz_complex": "x_train is complex128",
    "npz_text": "x_train is <U1",
    "npz_five_axes": "x_train has shape [4, 1, 1, 1, 1]",
    "npz_other_test_shape": "Train samples are uint8 [1, 2, 3], test samples uint8 [1, 1, 3]",
    "npz_other_test_type": "test samples float32",
    "npz_unnamed_class": "Label 1 has no class name",
    "npz_number_names": "class_names is int64",
    "npz_claims_more": "x_train claims [4, 1000000000000] of float32",
    "npz_negative_shape": "x_train claims [-1, -4]",
    "npz_calls": "'x_train' is no numpy array",
    "npz_nested_header": "'x_train' is no numpy array",
    "npz_unclosed_header": "'x_train' is no numpy array",
    "npz_false_checksum": "x_train is damaged",
    "tensors_misnamed": "holds the tensors images, labels",
    "tensors_bfloat16": "'inputs' is BF16",
    "tensors_gap": "4 samples and 3 labels",
    "tensors_empty": "inputs has shape [0, 1152921504606846976]",
    "tensors_truncated": "damaged",
}


def test_every_bad_file_has_its_message() -> None:
    assert SAYS.keys() == BAD_DATASETS.keys()


@pytest.mark.parametrize("name", sorted(BAD_DATASETS))
def test_bad_files_end_in_an_error_that_names_the_place(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    BAD_DATASETS[name](tmp_path / "file")
    with pytest.raises(DatasetError, match=re.escape(SAYS[name])) as caught:
        import_dataset(tmp_path / "file", tmp_path / "out")
    assert caught.value.hint
    assert len(str(caught.value)) < 500
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert not Path(MARKER).exists()

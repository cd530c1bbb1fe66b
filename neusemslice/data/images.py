"""Decodes one image of a stranger, with Pillow's formats and sizes narrowed to what a dataset needs."""

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from neusemslice.data.limits import ImportLimits
from neusemslice.errors import DatasetError

FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif")
_GREY = ("1", "L", "LA", "La")
_COLOUR = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "CMYK", "YCbCr")


def probe_image(content: bytes, name: str, limits: ImportLimits) -> tuple[int, int, bool]:
    """Height, width and whether it is grey, from the header alone.

    Raises:
        DatasetError: the file is no image of a listed format, or too large, or of more than 8 bits a channel.
    """
    with _open(content, name) as image:
        width, height = image.size
        if width * height > limits.max_image_pixels:
            raise DatasetError(
                f"Image {name!r:.200} has {width} x {height} pixels.",
                hint=f"At most {limits.max_image_pixels:,} pixels are accepted.",
            )
        if image.mode not in _GREY + _COLOUR:
            raise DatasetError(
                f"Image {name!r:.200} is of Pillow's mode {image.mode}.", hint="Convert it to 8-bit grey or RGB."
            )
        return height, width, image.mode in _GREY


def decode_image(content: bytes, name: str, *, grey: bool, resize: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Pixels [channels, height, width], resized bilinearly with antialiasing where asked; the first frame of several.

    Raises:
        DatasetError: the image is damaged.
    """
    with _open(content, name) as image:
        try:
            pixels = image.convert("L" if grey else "RGB")
        except Exception as error:  # a decoder raises whatever a false file leads it into
            raise _damaged(name, error) from error
    if resize is not None:
        pixels = pixels.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)
    array = np.asarray(pixels, dtype=np.uint8)
    return array[None] if grey else np.ascontiguousarray(np.moveaxis(array, -1, 0))


def _open(content: bytes, name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(content), formats=FORMATS)
    except Exception as error:  # a decoder raises whatever a false file leads it into
        raise _damaged(name, error) from error


def _damaged(name: str, error: Exception) -> DatasetError:
    return DatasetError(
        f"Image {name!r:.200} cannot be decoded: {error!s:.200}.", hint=f"Use whole files of {', '.join(FORMATS)}."
    )

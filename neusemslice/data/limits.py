"""How much a stranger's dataset file may ask for."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ImportLimits:
    """Caps that an import checks before it spends the memory, the disk or the time.

    Args:
        max_entries: files and folders in an archive.
        max_entry_bytes: one image file, or one block that an archive's own headers ask for.
        max_uncompressed_bytes: all entries of an archive unpacked, and also the canonical file.
        max_ratio: unpacked bytes for each byte of the file, looked at above `ratio_free_bytes`.
        ratio_free_bytes: unpacked bytes that any file may have, however well it compresses.
        max_image_pixels: width times height of one image before resizing.
        max_samples: samples in one split.
        max_sample_elements: numbers in one sample.
        max_categories: categories.
        max_whole_array_bytes: one array that must be read at once (labels, class names, Fortran order).
    """

    max_entries: int = 2_000_000
    max_entry_bytes: int = 64 * 1024**2
    max_uncompressed_bytes: int = 64 * 1024**3
    max_ratio: int = 200
    ratio_free_bytes: int = 100 * 1000**2
    max_image_pixels: int = 50_000_000
    max_samples: int = 10_000_000
    max_sample_elements: int = 2**26
    max_categories: int = 100_000
    max_whole_array_bytes: int = 1024**3

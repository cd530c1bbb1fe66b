"""In what order the statistics of a dataset are added up, so that parts computed elsewhere give the very same sums."""

MOST_BLOCKS = 16
"""Blocks of a dataset, and so the most shards that can share the work on it."""


def block_bounds(batches: int) -> list[int]:
    """Where the blocks of so many batches begin, and where the last one ends: [0, ..., batches].

    The statistics of a block are those of its batches in order; those of the dataset are those of its blocks, merged in
    order. The bounds depend on the number of batches alone.
    """
    blocks = min(MOST_BLOCKS, batches)
    return [place * batches // blocks for place in range(blocks + 1)] if blocks else [0]

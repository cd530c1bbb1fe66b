"""In what order the statistics of a dataset are added up, so that parts computed elsewhere give the very same sums."""

from neusemslice.config import MOST_SHARDS


def block_bounds(batches: int) -> list[int]:
    """Where the blocks of so many batches begin, and where the last one ends: [0, ..., batches].

    The statistics of a block are those of its batches in order; those of the dataset are those of its blocks, merged in
    order. The bounds depend on the number of batches alone.
    """
    blocks = min(MOST_SHARDS, batches)
    return [place * batches // blocks for place in range(blocks + 1)] if blocks else [0]

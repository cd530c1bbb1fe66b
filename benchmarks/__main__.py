"""All benchmarks that need no files of one's own: `python -m benchmarks`."""

from benchmarks import cka

cka.main()

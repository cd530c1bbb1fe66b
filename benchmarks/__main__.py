"""All benchmarks that need no files of one's own: `python -m benchmarks`."""

from benchmarks import cka, deeplift, memory, slicing

for benchmark in (cka, deeplift, slicing, memory):
    print(f"\n## {benchmark.__name__}\n", flush=True)
    benchmark.main()

"""What a job's process has to read beside its own folder: Python, the packages, the machine's libraries and devices."""

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

_SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/proc", "/sys")
_SETTINGS = ("ld.so.cache", "ld.so.preload", "localtime", "passwd", "nsswitch.conf", "alternatives")
_DEVICES = ("null", "zero", "full", "random", "urandom")
_GPUS = "nvidia*"
_PACKAGES = ("app", "worker", "neusemslice")


def code(root: Path) -> Iterator[Path]:
    """Folders and files to read. None of them holds the work folder `root`: its neighbours are other jobs."""
    found = [*map(Path, _SYSTEM), *(Path("/etc", name) for name in _SETTINGS)]
    found += [Path(place) for place in (sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path) if place]
    for name in _PACKAGES:
        spec = find_spec(name)
        found += map(Path, (spec.submodule_search_locations or ()) if spec else ())
    root = root.resolve()
    return (path for path in map(Path.resolve, found) if not root.is_relative_to(path))


def devices() -> Iterator[Path]:
    """Devices to use: those without harm, and the GPUs."""
    yield from (Path("/dev", name) for name in _DEVICES)
    yield from Path("/dev").glob(_GPUS)

"""A zygote whose jobs are test code instead of orders: `python odd_jobs.py SOCKET PID`. See worker.zygote."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from worker.parent import die_with_parent
from worker.zygote import serve


def work(root: Path, pipe: int) -> int:
    """Do the deed that `deed.txt` names."""
    deed = (root / "deed.txt").read_text()
    os.write(pipe, json.dumps({"deed": deed}).encode() + b"\n")
    if deed == "look":
        seen = {
            "fds": {place.name: str(place.readlink()) for place in _descriptors()},
            "environment": dict(os.environ),
            "threads": len(list(Path("/proc/self/task").iterdir())),
            "session": os.getsid(0) == os.getpid() == os.getpgid(0),
            "cwd": str(Path.cwd()),
        }
        (root / "seen.json").write_text(json.dumps(seen))
    elif deed == "abort":
        os.abort()
    elif deed == "sleep":
        time.sleep(60)
    elif deed == "daemonise":
        grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        (root / "grandchild.txt").write_text(str(grandchild.pid))
    elif deed == "kill the zygote":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    return 7


def _descriptors() -> list[Path]:
    """Without the one that the listing itself opens."""
    return [place for place in list(Path("/proc/self/fd").iterdir()) if place.is_symlink()]


if __name__ == "__main__":
    control = socket.socket(fileno=int(sys.argv[1]))
    die_with_parent(int(sys.argv[2]))
    control.send(json.dumps({"ready": True}).encode())
    serve(control, work)

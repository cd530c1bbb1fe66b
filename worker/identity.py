"""Who works on an attempt, as the job's transitions show it."""

import os
import socket

from app.db import JsonObject


def this_worker(device: str) -> JsonObject:
    """Where this process runs, and the device that its jobs run on."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "device": device}

"""SIGTERM and SIGINT to a worker: the first asks it to drain, a second not to wait for anything."""

import signal
from threading import Event


class StopSignals:
    """Two events that the signals raise."""

    def __init__(self) -> None:
        self.stopping = Event()
        self.at_once = Event()

    def listen(self) -> None:
        """From now on, in this process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self.receive())

    def receive(self) -> None:
        """A signal has come."""
        (self.at_once if self.stopping.is_set() else self.stopping).set()

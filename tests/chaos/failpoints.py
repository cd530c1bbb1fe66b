"""The steps at which a process of the service can be made to die, or to stop.

A point is just before or just after one call of one of the service's own functions, which is wrapped in the process
that is to be hit; the service itself holds no code for it. A point whose function is gone cannot be armed, and one that
is no longer reached leaves no mark: both fail the tests.
"""

import functools
import importlib
import inspect
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

Action = Literal["kill", "stop", "kill_descendants"]


@dataclass(frozen=True)
class Point:
    """Just before or after a call of `function` (`module:qualified.name`)."""

    when: Literal["before", "after"]
    function: str


SUBMITTING = {
    "uploaded": Point("after", "app.api.datasets:store_file"),
    "submitting": Point("after", "app.api.context:remember"),
    "submitted": Point("before", "app.api.context:relay_outbox"),
    "announcing": Point("after", "app.jobs.queue:LocalQueue.publish"),
    "announced": Point("after", "app.api.context:relay_outbox"),
}
"""In the API, from the stored bytes to the answer."""

SUPERVISING = {
    "claiming": Point("after", "app.jobs.leases:claim_next"),
    "claimed": Point("before", "worker.supervisor:Supervisor._supervise"),
    "prepared": Point("after", "worker.workspace:Workspace.prepare"),
    "started": Point("after", "worker.child:Child.start"),
    "running": Point("after", "worker.child:Child.messages"),
    "ended": Point("before", "worker.settling:Settlement.settle"),
    "storing": Point("before", "app.artifacts.store:LocalBlobStore.put_file"),
    "stored": Point("after", "app.artifacts.store:LocalBlobStore.put_file"),
    "committing": Point("after", "app.jobs.completion:succeed"),
    "committed": Point("before", "worker.workspace:Workspace.remove"),
    "cleaned": Point("after", "worker.workspace:Workspace.remove"),
}
"""In a worker, in the order in which a job passes them."""

REAPING = {
    "reaping": Point("after", "app.jobs.reaper:_settle"),
    "reaped": Point("after", "worker.maintenance:reap"),
    "relaying": Point("after", "app.jobs.queue:LocalQueue.publish"),
    "relayed": Point("after", "worker.maintenance:relay_outbox"),
}
"""In whoever looks after the tables."""

POINTS = SUBMITTING | SUPERVISING | REAPING


@dataclass(frozen=True)
class Armed:
    """A point at which a process acts on itself, the first time that any process reaches it."""

    name: str
    mark: Path
    """Made at that moment; its existence tells the others, and the test, that the point was reached."""
    action: Action = "kill"

    @property
    def fired(self) -> bool:
        """Whether a process has reached it."""
        return self.mark.exists()

    def arm(self) -> None:
        """Wrap the point's function in this process."""
        point = POINTS[self.name]
        owner, attribute = _find(point.function)
        static = inspect.getattr_static(owner, attribute)
        kind = type(static) if isinstance(static, classmethod | staticmethod) else None
        plain: Callable[..., Any] = static.__func__ if kind else static

        @functools.wraps(plain)
        def wrapped(*arguments: Any, **named: Any) -> Any:
            if point.when == "before":
                self._fire(None)
            result = plain(*arguments, **named)
            if point.when == "after":
                self._fire(result)
            return result

        setattr(owner, attribute, kind(wrapped) if kind else wrapped)

    def _fire(self, result: Any) -> None:
        if self.name in _ONLY_WITH_RESULT and not result:
            return
        try:
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        match self.action:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "kill_descendants":
                for process in psutil.Process().children(recursive=True):
                    with suppress(psutil.NoSuchProcess):
                        process.kill()


_ONLY_WITH_RESULT = {"claiming", "reaped", "relayed"}
"""Points that every round of polling passes; they count once the call has found something."""


def _find(function: str) -> tuple[Any, str]:
    module, _, path = function.partition(":")
    *parents, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for parent in parents:
        owner = getattr(owner, parent)
    inspect.getattr_static(owner, name)
    return owner, name

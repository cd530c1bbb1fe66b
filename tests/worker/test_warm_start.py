"""Jobs' processes forked from a zygote: fresh, watched, and ended with it."""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file
from structlog.testing import capture_logs

from worker import launched
from worker.child import Child
from worker.order import LOG, ORDER, OUTCOME, Limits, Order, Outcome
from worker.warm_start import WarmStart

ODD = (sys.executable, str(Path(__file__).with_name("odd_jobs.py")))


@pytest.fixture(scope="module")
def warm() -> Iterator[WarmStart]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", "postgresql://secret")
        patch.setenv("REDIS_URL", "redis://secret")
        with WarmStart(1, ODD) as warm:
            assert warm.wait_until_ready(180)
            yield warm


@pytest.fixture
def start(warm: WarmStart, tmp_path: Path) -> Iterator[Callable[[str], Child]]:
    children, numbers = [], itertools.count()

    def start(deed: str) -> Child:
        root = tmp_path / str(next(numbers))
        (root / "tmp").mkdir(parents=True)
        (root / "deed.txt").write_text(deed)
        children.append(Child.start(root, threads=1, launch=warm))
        return children[-1]

    yield start
    for child in children:
        child.kill()


def wait_for(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ended(child: Child) -> int | None:
    """How it ended, once it has."""

    def has_ended() -> bool:
        child.messages(0.1)
        return child.exit_code() is not None

    wait_for(has_ended)
    return child.exit_code()


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


def test_a_forked_process_is_as_good_as_a_fresh_one(start: Callable[[str], Child], tmp_path: Path) -> None:
    child = start("look")
    assert ended(child) == 7
    seen = json.loads((tmp_path / "0" / "seen.json").read_text())
    listing = seen["fds"]
    assert set(listing) == {"0", "1", "2", "3"}
    assert listing["0"] == "/dev/null"
    assert listing["1"] == listing["2"] == str(tmp_path / "0" / "log.txt")
    assert listing["3"].startswith("pipe:")
    assert seen["session"] is True
    assert seen["threads"] == 1
    assert seen["cwd"] == str(tmp_path / "0")
    assert seen["environment"]["TMPDIR"] == str(tmp_path / "0" / "tmp")
    assert "secret" not in json.dumps(seen)


def test_neither_the_zygote_nor_its_jobs_are_given_a_credential(start: Callable[[str], Child]) -> None:
    child = start("sleep")
    for pid in (child.pid, psutil.Process(child.pid).ppid()):
        assert b"secret" not in Path(f"/proc/{pid}/environ").read_bytes()
    wait_for(lambda: "worker.runner" in " ".join(psutil.Process(child.pid).cmdline()))


def test_messages_and_exit_codes_arrive(start: Callable[[str], Child]) -> None:
    child = start("look")
    said = []
    wait_for(lambda: said.extend(child.messages(0.1)) or child.exit_code() is not None)
    assert said == [{"deed": "look"}]
    assert child.exit_code() == 7
    assert ended(start("abort")) == -signal.SIGABRT
    killed = start("sleep")
    os.kill(killed.pid, signal.SIGKILL)
    assert ended(killed) == -signal.SIGKILL


def test_a_job_stops_on_demand_and_its_siblings_go_on(start: Callable[[str], Child]) -> None:
    first, second = start("sleep"), start("sleep")
    first.stop(5.0)
    assert first.exit_code() == -signal.SIGTERM
    assert is_gone(first.pid)
    assert second.exit_code() is None


def test_jobs_that_are_killed_as_soon_as_they_are_forked_do_not_take_the_zygote_with_them(
    start: Callable[[str], Child],
) -> None:
    """They may not have a group of their own yet."""
    for _ in range(30):
        start("sleep").kill()
    assert ended(start("look")) == 7


def test_what_a_job_leaves_behind_is_ended_with_it(start: Callable[[str], Child], tmp_path: Path) -> None:
    """A grandchild in a session of its own: a signal to the job's group does not reach it."""
    child = start("daemonise")
    assert ended(child) == 7
    assert is_gone(int((tmp_path / "0" / "grandchild.txt").read_text()))


def test_jobs_started_at_once_are_kept_apart(start: Callable[[str], Child]) -> None:
    children: list[Child] = []
    threads = [threading.Thread(target=lambda: children.append(start("look"))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ended(child) for child in children] == [7] * 8
    assert len({child.pid for child in children}) == 8


def test_a_zygote_that_dies_takes_its_jobs_with_it_and_is_replaced(
    warm: WarmStart, start: Callable[[str], Child]
) -> None:
    bystander = start("sleep")
    culprit = start("kill the zygote")
    assert [ended(culprit), ended(bystander)] == [-signal.SIGKILL] * 2
    wait_for(lambda: is_gone(culprit.pid) and is_gone(bystander.pid))
    wait_for(lambda: warm.wait_until_ready(0.1) and ended(start("look")) == 7)


@pytest.mark.parametrize("end", [Child.kill, lambda child: os.kill(child.pid, signal.SIGKILL)])
def test_a_zygote_that_was_stopped_is_as_good_as_dead_once_one_of_its_jobs_has_ended(
    warm: WarmStart, start: Callable[[str], Child], monkeypatch: pytest.MonkeyPatch, end: Callable[[Child], None]
) -> None:
    monkeypatch.setattr(launched, "SILENT_S", 0.3)
    child, bystander = start("sleep"), start("sleep")
    zygote = psutil.Process(child.pid).ppid()
    os.kill(zygote, signal.SIGSTOP)
    ending = threading.Thread(target=end, args=(child,), daemon=True)
    ending.start()
    ending.join(20)
    assert not ending.is_alive()
    assert [ended(child), ended(bystander)] == [-signal.SIGKILL] * 2
    wait_for(lambda: is_gone(zygote) and is_gone(child.pid) and is_gone(bystander.pid))
    wait_for(lambda: warm.wait_until_ready(0.1) and ended(start("look")) == 7)


def test_a_zygote_that_runs_is_not_suspected_while_its_jobs_do(
    start: Callable[[str], Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launched, "SILENT_S", 0.0)
    child = start("sleep")
    for _ in range(3):
        child.messages(0.05)
        assert child.exit_code() is None
    child.stop(5.0)
    assert child.exit_code() == -signal.SIGTERM


def test_without_a_zygote_jobs_start_from_scratch(tmp_path: Path) -> None:
    """It cannot read its order, for there is none; that a process of its own said so is what counts."""
    (tmp_path / "tmp").mkdir()
    with WarmStart(1, (sys.executable, "-c", "import time; time.sleep(60)")) as cold:
        child = Child.start(tmp_path, threads=1, launch=cold)
        assert "-m worker.runner" in " ".join(psutil.Process(child.pid).cmdline())
        assert psutil.Process(child.pid).ppid() == os.getpid()
        assert ended(child) == 1
        child.kill()


SECOND_THREAD = "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()"


@pytest.mark.parametrize(("lines", "reason"), [(SECOND_THREAD, "started threads (2 in all)"), ("", "")])
def test_only_a_process_with_one_thread_may_be_forked(lines: str, reason: str) -> None:
    code = f"{lines}\nfrom worker.zygote import check_fitness\ncheck_fitness()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert reason in run.stderr
    assert (run.returncode == 0) == (reason == "")


def test_an_unfit_zygote_is_not_used_and_the_log_says_why() -> None:
    unfit = 'import socket, sys; socket.socket(fileno=int(sys.argv[1])).send(b\'{"unfit": "it has 3 threads"}\')'
    with capture_logs() as logs, WarmStart(1, (sys.executable, "-c", unfit)) as warm:
        wait_for(lambda: any(entry["event"] == "zygote.unfit" for entry in logs))
        assert not warm.wait_until_ready(0)
    assert [entry["reason"] for entry in logs if entry["event"] == "zygote.unfit"] == ["it has 3 threads"]


def test_a_model_is_inspected_in_a_process_that_was_forked_with_torch_loaded(tmp_path: Path) -> None:
    """The real zygote with everything that jobs import, and a real order; torch computes with two threads."""
    root = tmp_path / "attempt-1"
    for folder in ("inputs", "outputs", "tmp", "checkpoints"):
        (root / folder).mkdir(parents=True)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    save_file(network.state_dict(), root / "inputs" / "weights")
    order = Order(
        spec={"kind": "inspect_model", "model_id": "mdl_" + "0" * 26},
        files={"weights": "inputs/weights"},
        values={"architecture": {"builder": "mlp", "kwargs": {"sizes": [4, 5, 3]}, "input_shape": [4]}},
        limits=Limits(memory_bytes=2**40, file_bytes=2**30, threads=2, sandbox="required"),
    )
    (root / ORDER).write_text(order.model_dump_json())
    with WarmStart(2) as warm:
        assert warm.wait_until_ready(120)
        child = Child.start(root, threads=2, launch=warm)
        assert psutil.Process(child.pid).ppid() != os.getpid()
        assert ended(child) == 0
        child.kill()
    outcome = Outcome.model_validate_json((root / OUTCOME).read_bytes())
    assert outcome.error is None, (root / LOG).read_text()
    assert [file.name for file in outcome.outputs] == ["model.safetensors"]


def test_the_zygote_ends_with_its_supervisor(tmp_path: Path) -> None:
    said = tmp_path / "zygote"
    code = """
import os, sys, time
from worker.order import LOG, ORDER, OUTCOME, Limits, Order, Outcome
from worker.warm_start import WarmStart
warm = WarmStart(1, sys.argv[2:])
assert warm.wait_until_ready(180)
with open(sys.argv[1] + ".part", "w") as file:
    file.write(str(warm._process.pid))
os.rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(said), *ODD]) as supervisor:
        try:
            wait_for(lambda: said.exists() or supervisor.poll() is not None, 180)
            assert supervisor.poll() is None
        finally:
            supervisor.kill()
    zygote = int(said.read_text())
    wait_for(lambda: is_gone(zygote))

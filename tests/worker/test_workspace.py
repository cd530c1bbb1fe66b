"""What a job's process may say, and what of it is believed."""

import json
from pathlib import Path

import pytest

from worker.order import OUTCOME, plain, write_outcome
from worker.progress import ProgressMeter
from worker.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    (tmp_path / "outputs").mkdir()
    return Workspace(tmp_path)


def test_what_json_or_postgres_cannot_keep_is_made_plain(workspace: Workspace) -> None:
    write_outcome(workspace.root, {"result": {"loss": float("nan"), "a\x00b": ["\x00", float("inf"), 1.5]}})
    outcome = workspace.read_outcome()
    assert outcome is not None
    assert outcome.result == {"loss": None, "a\N{REPLACEMENT CHARACTER}b": ["\N{REPLACEMENT CHARACTER}", None, 1.5]}
    assert plain({"x": (1, {"y": True})}) == {"x": [1, {"y": True}]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"surprise": 1}',
        b'{"outputs": [{"name": "../../etc/passwd"}]}',
        b'{"outputs": [{"name": "missing.json"}]}',
        b'{"outputs": [{"name": "x.json", "role": "king"}]}',
        b"\xff\xfe",
    ],
)
def test_an_outcome_that_cannot_be_understood_is_none(workspace: Workspace, content: bytes) -> None:
    (workspace.root / OUTCOME).write_bytes(content)
    assert workspace.read_outcome() is None


def test_outputs_have_the_media_type_of_their_ending(workspace: Workspace) -> None:
    names = ("slice.safetensors", "comparison.json", "comparison.csv", "report.html")
    for name in names:
        workspace.output(name).touch()
    (workspace.root / OUTCOME).write_text(json.dumps({"outputs": [{"name": name} for name in names]}))
    outcome = workspace.read_outcome()
    assert outcome is not None
    assert [file.media_type for file in outcome.outputs] == [
        "application/octet-stream",
        "application/json",
        "text/csv",
        "text/html",
    ]


def test_no_outcome_is_none(workspace: Workspace) -> None:
    assert workspace.read_outcome() is None


def test_an_output_that_is_a_link_is_not_taken(workspace: Workspace) -> None:
    workspace.output("report.json").symlink_to("/etc/passwd")
    (workspace.root / OUTCOME).write_text(json.dumps({"outputs": [{"name": "report.json"}]}))
    assert workspace.read_outcome() is None


class TestProgressMeter:
    def report(self, meter: ProgressMeter, stage: str, fraction: float) -> dict[str, object] | None:
        meter.update({"stage": stage, "done": 1, "total": 2, "fraction": fraction})
        return meter.take_news()

    def test_news_is_another_stage_or_a_hundredth(self) -> None:
        meter = ProgressMeter()
        assert self.report(meter, "score", 0.100) is not None
        assert self.report(meter, "score", 0.105) is None
        assert self.report(meter, "score", 0.111) is not None
        assert self.report(meter, "coverage", 0.112) is not None
        assert meter.take_news() is None

    def test_a_long_step_shows_that_it_moves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        meter, now = ProgressMeter(), [1000.0]
        monkeypatch.setattr("worker.progress.time.monotonic", lambda: now[0])
        assert self.report(meter, "train", 0.1) is not None
        now[0] += 59
        assert self.report(meter, "train", 0.1001) is None
        now[0] += 2
        assert self.report(meter, "train", 0.1002) is not None
        now[0] += 61
        assert meter.take_news() is None

    def test_the_fraction_never_falls(self) -> None:
        meter = ProgressMeter()
        self.report(meter, "score", 0.6)
        news = self.report(meter, "coverage", 0.2)
        assert news is not None
        assert news["fraction"] == 0.6

    @pytest.mark.parametrize("message", [{}, {"stage": 1}, {"stage": "x", "done": "a", "total": 1}])
    def test_nonsense_is_ignored(self, message: dict[str, object]) -> None:
        meter = ProgressMeter()
        meter.update(message)
        assert meter.take_news() is None

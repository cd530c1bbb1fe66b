"""What an attempt leaves is found by the next one, and by nobody else."""

import os
from pathlib import Path

import pytest

from app.jobs.leases import Claim
from worker.workspace import Workspace


def create(work_dir: Path, fence: int, *, job_id: str = "job_1", max_checkpoint_bytes: int = 1000) -> Workspace:
    held = Claim(job_id, fence, fence, False, "slice", "prj_1", {})
    return Workspace.create(work_dir, held, max_checkpoint_bytes=max_checkpoint_bytes)


def found(workspace: Workspace) -> dict[str, str]:
    return {path.name: path.read_text() for path in workspace.checkpoints.iterdir()}


@pytest.mark.parametrize("removed", [False, True], ids=["the supervisor was killed", "the supervisor cleaned up"])
def test_the_next_attempt_finds_what_this_one_left(tmp_path: Path, removed: bool) -> None:
    first = create(tmp_path, 1)
    (first.checkpoints / "epoch.safetensors").write_text("3 epochs")
    first.output("report.json").write_text("half")
    if removed:
        first.remove(keep_checkpoints=True)
        assert [path.name for path in first.root.iterdir()] == ["checkpoints"]
    second = create(tmp_path, 2)
    assert found(second) == {"epoch.safetensors": "3 epochs"}
    assert list((second.root / "outputs").iterdir()) == []
    assert [path.name for path in second.root.parent.iterdir()] == ["attempt-2"]
    assert found(create(tmp_path, 1, job_id="job_2")) == {}


def test_an_ended_job_leaves_nothing(tmp_path: Path) -> None:
    workspace = create(tmp_path, 1)
    (workspace.checkpoints / "epoch.safetensors").touch()
    workspace.remove(keep_checkpoints=False)
    assert list(tmp_path.iterdir()) == []
    create(tmp_path, 2).remove(keep_checkpoints=True)
    assert list(tmp_path.iterdir()) == []


def test_a_crash_while_taking_over_loses_nothing(tmp_path: Path) -> None:
    for fence, names in ((1, ("a", "b")), (2, ("b",))):
        folder = tmp_path / "job_1" / f"attempt-{fence}" / "checkpoints"
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_text(str(fence))
    assert found(create(tmp_path, 3)) == {"a": "1", "b": "2"}


def test_an_attempt_that_lost_its_lease_touches_nothing_of_its_successors(tmp_path: Path) -> None:
    late = create(tmp_path, 1)
    (late.checkpoints / "epoch").write_text("old")
    open_file = (late.checkpoints / "epoch").open("w")
    current = create(tmp_path, 2)
    with open_file, pytest.raises(FileNotFoundError):
        (late.checkpoints / "epoch").write_text("late")
    (current.checkpoints / "epoch").write_text("new")
    late.remove(keep_checkpoints=True)
    create(tmp_path, 1)
    assert found(current) == {"epoch": "new"}


def test_only_finished_plain_files_are_taken_over(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of somebody else")
    folder = create(tmp_path / "work", 1).checkpoints
    (folder / "link").symlink_to(secret)
    os.link(secret, folder / "hard_link")
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "epoch.tmp").write_text("half")
    (folder / "Ünusual\n").write_text("name")
    (folder / "epoch").write_text("whole")
    assert found(create(tmp_path / "work", 2)) == {"epoch": "whole"}
    assert secret.read_text() == "of somebody else"


def test_a_folder_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "epoch").write_text("of somebody else")
    folder = create(tmp_path / "work", 1).checkpoints
    folder.rmdir()
    folder.symlink_to(tmp_path / "elsewhere")
    assert found(create(tmp_path / "work", 2)) == {}
    assert (tmp_path / "elsewhere" / "epoch").exists()


def test_more_than_the_limit_is_dropped(tmp_path: Path) -> None:
    folder = create(tmp_path, 1).checkpoints
    (folder / "a").write_text("x" * 60)
    (folder / "b").write_text("x" * 60)
    assert found(create(tmp_path, 2, max_checkpoint_bytes=100)) == {}

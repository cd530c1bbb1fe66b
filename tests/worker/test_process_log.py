"""What the job's own process writes into its log: lines of JSON that say which job, attempt and request."""

import io
import json
from pathlib import Path

import numpy as np

from app.artifacts.store import LocalBlobStore
from app.jobs.leases import Claim
from app.jobs.origin import Origin
from app.settings import Settings
from worker.child import Child
from worker.inputs import Inputs
from worker.stages import STAGES, Stage, read_stages
from worker.workspace import LOG, Limits, Workspace

LIMITS = Limits(memory_bytes=2**34, file_bytes=2**30, threads=1)


def run_process(settings: Settings, content: bytes) -> tuple[Path, list[dict[str, object]]]:
    """The folder and log of a process that has inspected a dataset."""
    store = LocalBlobStore(settings.blob_dir)
    blob = store.put_stream(io.BytesIO(content), max_bytes=10**6)
    spec = {"kind": "inspect_dataset", "dataset_id": "ds_" + "0" * 26}
    held = Claim("job_1", 1, 1, False, "inspect_dataset", "prj_1", spec, Origin(request_id="ci-17"))
    workspace = Workspace.create(settings.work_dir, held, max_checkpoint_bytes=10**6)
    inputs = Inputs(files={"source": blob.digest}, values={"reading": {"format": "auto"}})
    workspace.prepare(held, inputs, store, LIMITS)
    child = Child.start(workspace.root, threads=1)
    while child.exit_code() is None:
        child.messages(0.1)
    child.kill()
    return workspace.root, [json.loads(line) for line in (workspace.root / LOG).read_text().splitlines()]


def test_each_stage_is_a_line_and_can_be_read_again(settings: Settings) -> None:
    stream = io.BytesIO()
    np.savez(stream, x_train=np.zeros((8, 4, 4), dtype=np.uint8), y_train=np.arange(8) % 2)
    root, lines = run_process(settings, stream.getvalue())
    assert [line["stage"] for line in lines] == ["import"]
    for line in lines:
        assert (line["event"], line["level"]) == ("process.stage", "info")
        assert (line["job_id"], line["attempt"], line["request_id"]) == ("job_1", 1, "ci-17")
    (stage,) = read_stages(root, ended_ns=2**63)
    assert (stage.name, stage.ended_ns) == ("import", 2**63)
    with (root / STAGES).open("a") as file:
        file.write('{"not": "a stage"}\n["late", 9223372036854775807]\n["torn')
    assert read_stages(root, ended_ns=2**62) == [Stage("import", stage.began_ns, 2**62)]
    assert read_stages(root, ended_ns=0) == []  # by a clock that has gone back since, none has begun


def test_a_process_that_died_before_its_first_stage_has_none(tmp_path: Path) -> None:
    (tmp_path / STAGES).parent.mkdir()
    (tmp_path / STAGES).touch()
    assert read_stages(tmp_path, ended_ns=2**62) == []


def test_a_failure_is_one_line_with_its_traceback(settings: Settings) -> None:
    _, lines = run_process(settings, b"no archive")
    (failed,) = (line for line in lines if line["event"] == "process.failed")
    assert (failed["job_id"], failed["kind"], failed["level"]) == ("job_1", "inspect_dataset", "error")
    assert "Traceback" in str(failed["exception"])

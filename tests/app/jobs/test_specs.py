"""What a spec says about itself."""

from typing import Literal, get_args

from app.jobs.specs import JOB_KINDS, ClientSpec, Common, RestructureSpec, SlicingParams, file_of

MODEL, DATASET, SLICE = (f"{prefix}_{'0' * 26}" for prefix in ("mdl", "ds", "art"))


class Stream(Common):
    kind: Literal["stream"] = "stream"
    dataset_ids: list[str]
    tasks: list[dict[str, str]]


def test_a_spec_knows_what_it_refers_to_wherever_it_stands() -> None:
    spec = Stream(
        model_id=MODEL, dataset_ids=["a", "b"], tasks=[{"name": "x", "dataset_id": "c"}], metadata={"other_id": "d"}
    )
    found = spec.references()
    assert found == {"/model_id": MODEL, "/dataset_ids/0": "a", "/dataset_ids/1": "b", "/tasks/0/dataset_id": "c"}
    assert [file_of(pointer) for pointer in found] == ["model", "dataset_0", "dataset_1", "tasks_0_dataset"]


def test_what_is_left_out_is_no_reference() -> None:
    assert RestructureSpec(kind="restructure", model_id=MODEL, slice_id=SLICE).references() == {
        "/model_id": MODEL,
        "/slice_id": SLICE,
    }
    spec = RestructureSpec(kind="restructure", model_id=MODEL, dataset_id=DATASET, slicing=SlicingParams())
    assert set(spec.references()) == {"/model_id", "/dataset_id"}


def test_every_kind_that_a_client_may_ask_for_is_named() -> None:
    assert {get_args(spec.model_fields["kind"].annotation)[0] for spec in get_args(ClientSpec)} == set(JOB_KINDS)

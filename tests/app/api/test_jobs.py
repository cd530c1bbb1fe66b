"""`/v1/jobs` over real HTTP."""

import json
import threading
import time

import httpx
import pytest

from app.jobs import completion, leases
from app.jobs.leases import Claim
from tests.app.api.conftest import Api
from tests.claims import claim_job

Job = dict[str, object]
PROGRESS = {"stage": "score", "done": 1, "total": 2, "fraction": 0.25, "eta_s": None}


def claim(api: Api, job_id: str) -> Claim:
    with api.database.transaction() as session:
        return claim_job(session, job_id, owner="test", lease_s=60)


def succeed(api: Api, held: Claim) -> None:
    with api.database.transaction() as session:
        completion.succeed(session, held, result={"answer": 42}, versions={"torch": "x"}, outputs=[])


class TestSubmit:
    def test_answers_202_with_a_location_and_the_resolved_config(self, client: httpx.Client, job: Job) -> None:
        answer = client.post("/v1/jobs", json=job | {"metadata": {"run": "7"}, "seed": 3})
        body = answer.json()
        assert answer.status_code == 202
        assert answer.headers["location"] == f"/v1/jobs/{body['id']}"
        assert (body["status"], body["seed"], body["metadata"]) == ("queued", 3, {"run": "7"})
        assert body["config"]["slicing"]["metric"] == "taylor"
        assert client.get(answer.headers["location"]).json()["transitions"][0]["data"] == {"status": "queued"}

    @pytest.mark.parametrize(
        ("change", "pointer", "words"),
        [
            ({"slicing": {"metric": "magic"}}, "/slicing/metric", "'taylor'"),
            ({"slicing": {"strategy": "global", "threshold": 0.9}}, "/slicing/threshold", "strategy='global'"),
            ({"slicing": {"threshold": 1.5}}, "/slicing/threshold", "less than or equal to 1"),
            ({"slicing": {"fraction": 0.5}}, "/slicing/fraction", "strategy='semantic'"),
            ({"slicing": {"target_compression": 1}}, "/slicing/target_compression", "less than 1"),
            ({"slicing": {"threshold": 0.9, "max_accuracy_drop": 0.1}}, "/slicing/max_accuracy_drop", "contradict"),
            ({"slicing": {"target_size_bytes": 0}}, "/slicing/target_size_bytes", "greater than 0"),
            ({"slicing": {"target_latency_ms": -1}}, "/slicing/target_latency_ms", "greater than 0"),
            ({"slicing": {"latency_batch_size": 8}}, "/slicing/latency_batch_size", "target_latency_ms"),
            (
                {"slicing": {"target_latency_ms": 1, "target_size_bytes": 10}},
                "/slicing/target_latency_ms",
                "contradict",
            ),
            ({"slicing": {"strategy": "global", "increment": 2}}, "/slicing/increment", "increment"),
            ({"slicing": {"strategy": "deeparc", "metric": "avg"}}, "/slicing/metric", "drops whole layers"),
            ({"slicing": {"strategy": "deeparc", "target_compression": 0.5}}, "/slicing/target_compression", "deeparc"),
            ({"metadata": {"a~/b": 1}}, "/metadata/a~0~1b", "valid string"),
            ({"a\x00": 1}, r"/a\u0000", "Extra inputs"),
            ({"sweep": [0]}, "/sweep/0", "greater than 0"),
            ({"thresold": 0.9}, "/thresold", "Extra inputs"),
            ({"kind": "magic"}, "", "slice"),
            ({"model_id": "../../etc/passwd"}, "/model_id", "match pattern"),
            ({"metadata": {f"k{i}": "v" for i in range(17)}}, "/metadata", "at most 16"),
            ({"seed": -1}, "/seed", "greater than or equal to 0"),
            ({"batch_size": 10**9}, "/batch_size", "less than or equal"),
        ],
    )
    def test_a_bad_parameter_is_a_422_that_points_at_it(
        self, client: httpx.Client, job: Job, change: Job, pointer: str, words: str
    ) -> None:
        answer = client.post("/v1/jobs", json=job | change)
        problem = answer.json()
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        assert problem["errors"][0]["pointer"] == pointer
        assert words in problem["errors"][0]["detail"]
        assert "\x00" not in problem["detail"]
        assert "Value error" not in problem["detail"]

    @pytest.mark.parametrize(
        ("change", "pointer", "words"),
        [
            ({"pruning": {}}, "/pruning/iterations", "when to stop"),
            ({"pruning": {"iterations": 2, "sparsity": 0.5}}, "/pruning/sparsity", "each says when to stop"),
            ({"pruning": {"iterations": 0}}, "/pruning/iterations", "greater than or equal to 1"),
            ({"pruning": {"iterations": 2, "method": "magic"}}, "/pruning/method", "'lamp'"),
            ({"pruning": {"iterations": 2, "amount": 1}}, "/pruning/amount", "less than 1"),
            ({"pruning": {"iterations": 2, "fine_tuning": {"epochs": 0}}}, "/pruning/fine_tuning/epochs", "greater"),
            ({"fine_tuning": {"learning_rate": -1}}, "/fine_tuning/learning_rate", "greater than 0"),
            ({"fine_tuning": {"distil": True}}, "/fine_tuning/distil", "Extra inputs"),
            ({"dataset_id": None, "fine_tuning": {}}, "/dataset_id", "fine_tuning needs dataset_id"),
            (
                {"dataset_id": None, "pruning": {"max_accuracy_drop": 0.1}},
                "/dataset_id",
                "pruning.max_accuracy_drop needs dataset_id",
            ),
        ],
    )
    def test_training_and_pruning_are_checked_at_once(
        self, client: httpx.Client, job: Job, change: Job, pointer: str, words: str
    ) -> None:
        stored = {"kind": "restructure", "slicing": None, "slice_id": "art_" + "0" * 26}
        answer = client.post("/v1/jobs", json=job | stored | change)
        problem = answer.json()
        assert answer.status_code == 422
        assert problem["errors"][0]["pointer"] == pointer
        assert words in problem["errors"][0]["detail"]

    def test_a_refusal_by_the_library_comes_with_its_own_hint(self, client: httpx.Client, job: Job) -> None:
        problem = client.post("/v1/jobs", json=job | {"slicing": {"fraction": 0.5}}).json()
        assert problem["detail"] == "/slicing/fraction: fraction is no parameter of strategy='semantic'."
        assert problem["hint"] == "Give threshold instead."

    @pytest.mark.parametrize(
        ("body", "pointer", "words"),
        [
            ({}, "/slice_id", "neither of them given"),
            ({"slice_id": "art_" + "0" * 26, "slicing": {}}, "/slice_id", "both given"),
            ({"slicing": {}, "dataset_id": None}, "/dataset_id", "slicing needs dataset_id"),
            ({"slicing": {}, "cut": 0.9}, "/cut", "cut re-cuts a stored slice"),
            ({"slicing": {"strategy": "deeparc"}, "branches": "scatter"}, "/branches", "drops whole layers"),
            (
                {"slice_id": "art_" + "0" * 26, "dataset_id": None, "reconstruct": "bias"},
                "/reconstruct",
                "there is no dataset",
            ),
            ({"slicing": {"strategy": "deeparc"}, "reconstruct": "norms"}, "/reconstruct", "drops whole layers"),
        ],
    )
    def test_contradictory_restructure_parameters_are_a_422(
        self, client: httpx.Client, job: Job, body: Job, pointer: str, words: str
    ) -> None:
        answer = client.post("/v1/jobs", json=job | {"kind": "restructure"} | body)
        problem = answer.json()
        assert answer.status_code == 422
        assert problem["errors"][0]["pointer"] == pointer
        assert words in problem["detail"]
        assert problem["hint"].startswith(("Give", "Set", "Leave"))

    @pytest.mark.parametrize("kind", ["slice", "restructure", "compare"])
    def test_a_config_as_the_service_shows_it_can_be_sent_again(
        self, client: httpx.Client, job: Job, kind: str
    ) -> None:
        """Defaults that have no effect are no offence."""
        if kind != "compare":
            job |= {"slicing": {"strategy": "deeparc"}}
        shown = client.post("/v1/jobs", json=job | {"kind": kind}).json()
        again = client.post("/v1/jobs", json={"kind": kind, **shown["config"]})
        assert (again.status_code, again.json()["config"]) == (202, shown["config"])

    def test_a_comparison_shows_what_it_will_do(self, client: httpx.Client, job: Job) -> None:
        answer = client.post("/v1/jobs", json=job | {"kind": "compare", "thresholds": [0.9], "fractions": [0.5]})
        config = answer.json()["config"]
        assert answer.status_code == 202
        assert config["strategies"] == ["semantic", "categorywise", "global", "random"]
        assert (config["thresholds"], config["compressions"], config["pilot"]) == ([0.9], [], True)
        assert client.get("/v1/jobs?kind=compare").json()["data"][0]["id"] == answer.json()["id"]

    @pytest.mark.parametrize(
        ("change", "pointer", "words"),
        [
            ({"strategies": []}, "/strategies", "at least one is needed"),
            ({"strategies": ["deeparc"], "deeparc_thresholds": []}, "/deeparc_thresholds", "no deeparc_thresholds"),
            ({"strategies": ["random"], "thresholds": [0.5], "fractions": [0.5]}, "/thresholds", "['random']"),
            ({"deeparc_thresholds": [0.5]}, "/deeparc_thresholds", "is cut by them"),
            ({"metrics": ["avg", "avg"]}, "/metrics", "'avg' is named twice"),
            ({"metrics": ["magic"]}, "/metrics/0", "'taylor'"),
            ({"compressions": [1]}, "/compressions/0", "less than 1"),
            ({"compressions": [0.1, 0.1]}, "/compressions", "names 0.1 twice"),
            ({"compressions": [0.5], "fractions": [0.5]}, "/compressions", "compressions and cuts"),
            ({"thresholds": [0.9]}, "/thresholds", "no fractions"),
            ({"fractions": [0.9]}, "/fractions", "no thresholds"),
            ({"compressions": [number / 40 for number in range(1, 40)]}, "/compressions", "624 networks to evaluate"),
            ({"slicing": {}}, "/slicing", "Extra inputs"),
        ],
    )
    def test_a_comparison_that_cannot_be_made_is_a_422(
        self, client: httpx.Client, job: Job, change: Job, pointer: str, words: str
    ) -> None:
        answer = client.post("/v1/jobs", json=job | {"kind": "compare"} | change)
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == pointer
        assert words in answer.json()["errors"][0]["detail"]

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"kind": {}}'])
    def test_what_is_no_job_at_all_is_a_422(self, client: httpx.Client, body: bytes) -> None:
        answer = client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 422
        assert answer.json()["code"] == "invalid_input"

    @pytest.mark.parametrize(
        "body", ["{", '{"sweep": ' + "[" * 5000 + "]" * 5000 + "}", '{"seed": 1' + "0" * 5000 + "}"]
    )
    def test_a_body_that_cannot_be_read_comes_with_a_hint(self, client: httpx.Client, body: str) -> None:
        answer = client.post("/v1/jobs", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (400, 422)
        assert "nested less than a hundred deep" in answer.json()["hint"]

    def test_an_unknown_model_is_a_404(self, client: httpx.Client, job: Job) -> None:
        answer = client.post("/v1/jobs", json=job | {"model_id": "mdl_" + "0" * 26})
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")

    def test_a_body_over_the_limit_is_a_413(self, client: httpx.Client, job: Job) -> None:
        answer = client.post("/v1/jobs", json=job | {"metadata": {"x": "y" * 30_000}})
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")

    def test_a_chunked_body_over_the_limit_is_a_413(self, client: httpx.Client) -> None:
        chunks = (b" " * 5_000 for _ in range(20))
        answer = client.post("/v1/jobs", content=chunks, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


class TestIdempotency:
    def test_the_same_key_and_request_take_effect_once(self, client: httpx.Client, job: Job) -> None:
        headers = {"Idempotency-Key": "k1"}
        first = client.post("/v1/jobs", json=job, headers=headers)
        second = client.post("/v1/jobs", json=job, headers=headers)
        assert first.json() == second.json()
        assert (second.status_code, second.headers["idempotent-replayed"]) == (202, "true")
        assert "idempotent-replayed" not in first.headers
        assert len(client.get("/v1/jobs").json()["data"]) == 1

    def test_ten_at_once_make_one_job(self, api: Api, job: Job) -> None:
        answers: list[httpx.Response] = []

        def post() -> None:
            with api.client() as client:
                answers.append(client.post("/v1/jobs", json=job, headers={"Idempotency-Key": "same"}))

        threads = [threading.Thread(target=post) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {answer.status_code for answer in answers} == {202}
        assert len({answer.json()["id"] for answer in answers}) == 1

    def test_the_same_key_with_another_request_is_refused(self, client: httpx.Client, job: Job) -> None:
        headers = {"Idempotency-Key": "k1"}
        client.post("/v1/jobs", json=job, headers=headers)
        answer = client.post("/v1/jobs", json=job | {"seed": 1}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")

    def test_a_refused_request_does_not_use_the_key_up(self, client: httpx.Client, job: Job) -> None:
        headers = {"Idempotency-Key": "k1"}
        wrong = job | {"model_id": "mdl_" + "0" * 26}
        assert client.post("/v1/jobs", json=wrong, headers=headers).status_code == 404
        assert client.post("/v1/jobs", json=job, headers=headers).status_code == 202

    def test_keys_of_different_projects_do_not_meet(self, api: Api, client: httpx.Client, job: Job) -> None:
        from app.projects.keys import create_key

        with api.database.transaction() as session:
            other = create_key(session, project="other", name="")
        headers = {"Idempotency-Key": "k1"}
        assert client.post("/v1/jobs", json=job, headers=headers).status_code == 202
        with api.client(other) as stranger:
            assert stranger.post("/v1/jobs", json=job, headers=headers).status_code == 404


class TestWatching:
    def test_a_long_poll_answers_at_the_next_change(self, api: Api, client: httpx.Client, job: Job) -> None:
        queued = client.post("/v1/jobs", json=job).json()
        timer = threading.Timer(0.5, claim, (api, queued["id"]))
        timer.start()
        started = time.monotonic()
        seen = client.get(queued["links"]["self"], params={"wait": 15}).json()
        assert seen["status"] == "running"
        assert 0.3 < time.monotonic() - started < 12
        timer.join()

    def test_a_change_between_two_polls_is_not_missed(self, api: Api, client: httpx.Client, job: Job) -> None:
        queued = client.post("/v1/jobs", json=job).json()
        claim(api, queued["id"])
        started = time.monotonic()
        seen = client.get(queued["links"]["self"], params={"wait": 15, "after": queued["last_event"]}).json()
        assert seen["status"] == "running"
        assert time.monotonic() - started < 12

    def test_a_long_poll_without_change_ends_in_time(self, client: httpx.Client, job: Job) -> None:
        queued = client.post("/v1/jobs", json=job).json()
        started = time.monotonic()
        assert client.get(queued["links"]["self"], params={"wait": 0.5}).json()["status"] == "queued"
        assert 0.4 < time.monotonic() - started < 12

    def test_events_page_in_order(self, api: Api, client: httpx.Client, job: Job) -> None:
        queued = client.post("/v1/jobs", json=job).json()
        succeed(api, claim(api, queued["id"]))
        first = client.get(queued["links"]["events"], params={"limit": 2}).json()
        rest = client.get(queued["links"]["events"], params={"after": first["data"][-1]["seq"]}).json()
        statuses = [event["data"]["status"] for event in first["data"] + rest["data"]]
        assert (first["has_more"], rest["has_more"]) == (True, False)
        assert statuses == ["queued", "running", "succeeded"]

    def test_a_stream_delivers_live_events_and_ends_with_the_job(
        self, api: Api, client: httpx.Client, job: Job
    ) -> None:
        queued = client.post("/v1/jobs", json=job).json()

        def work() -> None:
            time.sleep(0.3)
            held = claim(api, queued["id"])
            with api.database.transaction() as session:
                leases.renew(session, held, lease_s=60, progress=PROGRESS)
            succeed(api, held)

        worker = threading.Thread(target=work)
        worker.start()
        events = _stream(client, queued["links"]["events"])
        worker.join()
        assert [(event["id"], event["event"]) for event in events] == [
            ("1", "status"),
            ("2", "status"),
            ("3", "progress"),
            ("4", "status"),
        ]
        assert json.loads(events[2]["data"])["data"]["stage"] == "score"

    def test_a_stream_resumes_after_the_last_event_id(self, api: Api, client: httpx.Client, job: Job) -> None:
        queued = client.post("/v1/jobs", json=job).json()
        succeed(api, claim(api, queued["id"]))
        events = _stream(client, queued["links"]["events"], {"Last-Event-ID": "2"})
        assert [event["id"] for event in events] == ["3"]


class TestList:
    def test_pages_newest_first_without_gaps_or_repeats(self, client: httpx.Client, job: Job) -> None:
        ids = [client.post("/v1/jobs", json=job).json()["id"] for _ in range(5)]
        seen, cursor = [], None
        while True:
            page = client.get("/v1/jobs", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
            seen += [item["id"] for item in page["data"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        assert seen == sorted(ids, reverse=True)

    def test_filters_by_status(self, client: httpx.Client, job: Job) -> None:
        first, second = (client.post("/v1/jobs", json=job).json() for _ in range(2))
        client.post(first["links"]["cancel"])
        found = client.get("/v1/jobs", params={"status": "cancelled"}).json()["data"]
        assert [item["id"] for item in found] == [first["id"]]
        assert [item["id"] for item in client.get("/v1/jobs?status=queued").json()["data"]] == [second["id"]]


def test_cancel_and_retry(client: httpx.Client, job: Job) -> None:
    queued = client.post("/v1/jobs", json=job).json()
    assert client.post(queued["links"]["retry"]).status_code == 409
    assert client.post(queued["links"]["cancel"]).json()["status"] == "cancelled"
    assert client.post(queued["links"]["cancel"]).json()["status"] == "cancelled"
    again = client.post(queued["links"]["retry"])
    assert (again.status_code, again.json()["status"]) == (202, "queued")


def _stream(client: httpx.Client, url: str, headers: dict[str, str] | None = None) -> list[dict[str, str]]:
    events: list[dict[str, str]] = []
    with client.stream("GET", url, headers={"Accept": "text/event-stream"} | (headers or {})) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        current: dict[str, str] = {}
        for line in answer.iter_lines():
            if not line:
                if current:
                    events.append(current)
                current = {}
            elif not line.startswith(":"):
                field, _, value = line.partition(": ")
                current[field] = value
    return events

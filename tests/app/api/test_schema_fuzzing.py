"""Requests that the description allows or forbids, sent to the real API: no 5xx, and no answer that it leaves out.

Of each operation: its examples, the edges of every parameter and field (the coverage phase), and some at random.

Two checks are left out. `positive_data_acceptance` takes any 422 for a defect, and here what is well-formed may still
make no sense (a deadline that has passed). `negative_data_rejection` wants headers refused that nobody has heard of,
and numbers in JSON that come as text, which pydantic reads. That strangers are refused is test_access.py's.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from app.artifacts.store import LocalBlobStore
from app.db import Database
from app.projects.keys import authenticate
from app.settings import Settings
from tests.app.api import snapshot
from tests.app.api.conftest import Api, serving
from tests.app.api.inhabited import Inhabited, fill, new_key

EXAMPLES = 10
ID = re.compile(r"([a-z]+_)?[0-9a-z]{12,26}")
ONE_IN = {"POST /v1/jobs": 8}
"""Of the edges of all kinds of jobs together there are thousands."""
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    unsupported_method,
]

schema = schemathesis.openapi.from_dict(json.loads(snapshot.describe()))


@pytest.fixture(scope="module")
def target(new_database: Callable[[], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Inhabited]:
    database = Database(new_database())
    configured = Settings(data_dir=tmp_path_factory.mktemp("fuzz"), max_body_bytes=200_000, long_poll_max_s=0.01)
    with serving(configured, database) as url:
        key = new_key(database)
        with database.transaction() as session:
            project = authenticate(session, key).project_id
        yield fill(Api(url, key, project, database, LocalBlobStore(configured.blob_dir), configured))
    database.dispose()


@pytest.fixture(scope="module")
def sent() -> Counter[str]:
    """How many cases of the coverage phase there were, by operation."""
    return Counter()


@pytest.fixture
def key(target: Inhabited) -> str:
    """Every scope. Each operation has a key of its own: revoking one cannot spoil what is tried with another."""
    return new_key(target.api.database)


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_every_operation_keeps_to_its_description(
    case: schemathesis.Case, target: Inhabited, key: str, sent: Counter[str]
) -> None:
    if case.meta.phase.name == "coverage":
        sent[case.operation.label] += 1
        if sent[case.operation.label] % ONE_IN.get(case.operation.label, 1):
            return
    make_real(case, target)
    shown = {"Authorization": f"Bearer {key}"}
    answer = case.call_and_validate(base_url=target.api.url, headers=shown, checks=CHECKS)
    if answer.request.headers.get("Authorization") == shown["Authorization"]:  # some cases leave it out
        assert answer.status_code != 401


def make_real(case: schemathesis.Case, target: Inhabited) -> None:
    """Let about half of the well-formed ids be those of something that exists; what is deleted is there for that.

    An Idempotency-Key is made to be the first of its kind, or the same few would only repeat answers to others.
    """
    known = (case.headers or {}).get("Idempotency-Key", "")
    if 0 < len(known) < 200:
        case.headers["Idempotency-Key"] = f"{known}-{next(target.numbers)}"
    for place in (case.path_parameters, case.query, case.body):
        if not isinstance(place, dict):
            continue
        for name, value in place.items():
            if isinstance(value, str) and ID.fullmatch(value) and value[-1] < "h":
                if case.method == "DELETE" and name in target.spare:
                    place[name] = target.spare[name]()
                elif name in target.real:
                    place[name] = next(target.real[name])


def test_the_api_is_still_there(target: Inhabited) -> None:
    assert httpx.get(f"{target.api.url}/readyz").json()["database"] == "ok"

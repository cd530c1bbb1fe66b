"""The description of the API, from which clients are generated."""

import difflib
import json
from typing import Any

import pytest

from tests.app.api import snapshot

Operation = tuple[str, str, dict[str, Any]]


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return json.loads(snapshot.describe())


@pytest.fixture(scope="module")
def operations(document: dict[str, Any]) -> list[Operation]:
    return [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_the_description_is_the_committed_one() -> None:
    committed, now = snapshot.PATH.read_text().splitlines(), snapshot.describe().splitlines()
    difference = "\n".join(difflib.unified_diff(committed, now, "committed", "now", n=2, lineterm=""))
    if difference:
        pytest.fail(f"The API has changed. If clients may notice that, run `make openapi` and commit:\n{difference}")


def test_operations_are_named_and_their_errors_are_problems(operations: list[Operation]) -> None:
    names = [operation["operationId"] for _, _, operation in operations]
    assert len(set(names)) == len(names)
    for path, _, operation in operations:
        assert operation["operationId"].isidentifier()
        if path.startswith("/v1/"):
            assert operation["security"] == [{"ApiKey": []}]
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    schema = answer["content"]["application/problem+json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}, (path, status)


def test_every_post_takes_an_idempotency_key(operations: list[Operation]) -> None:
    posts = [operation for _, method, operation in operations if method == "post"]
    assert len(posts) >= 9
    for operation in posts:
        assert "Idempotency-Key" in [parameter["name"] for parameter in operation["parameters"]]


def test_models_and_datasets_are_made_of_forms_or_of_uploads(document: dict[str, Any]) -> None:
    for path in ("/v1/models", "/v1/datasets"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        assert set(content) == {"multipart/form-data", "application/json"}
        assert content["application/json"]["schema"]["properties"]["upload"]["pattern"].startswith("^upl_")
        assert "$ref" not in str(content["application/json"])

"""The description of the API, from which clients are generated."""

import httpx

from tests.app.api.conftest import Api

OPERATIONS = {
    "cancel_job",
    "create_dataset",
    "create_job",
    "create_key",
    "create_model",
    "delete_dataset",
    "delete_model",
    "download_artifact",
    "download_model",
    "get_artifact",
    "get_dataset",
    "get_job",
    "get_model",
    "get_project",
    "list_audit",
    "list_datasets",
    "list_job_artifacts",
    "list_job_events",
    "list_jobs",
    "list_keys",
    "list_models",
    "livez",
    "readyz",
    "retry_job",
    "complete_upload",
    "create_upload",
    "delete_artifact",
    "delete_upload",
    "get_upload",
    "put_upload_part",
    "revoke_key",
    "rotate_key",
}


def test_operations_are_named_and_their_errors_are_problems(api: Api) -> None:
    document = httpx.get(f"{api.url}/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    operations = {
        operation["operationId"]: (path, operation)
        for path, methods in document["paths"].items()
        for operation in methods.values()
    }
    assert set(operations) == OPERATIONS
    for path, operation in operations.values():
        if path.startswith("/v1/"):
            assert operation["security"] == [{"ApiKey": []}]
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    schema = answer["content"]["application/problem+json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}, (path, status)


def test_every_post_takes_an_idempotency_key(api: Api) -> None:
    document = httpx.get(f"{api.url}/openapi.json").json()
    posts = [methods["post"] for methods in document["paths"].values() if "post" in methods]
    assert len(posts) == 9
    for operation in posts:
        assert "Idempotency-Key" in [parameter["name"] for parameter in operation["parameters"]]


def test_models_and_datasets_are_made_of_forms_or_of_uploads(api: Api) -> None:
    document = httpx.get(f"{api.url}/openapi.json").json()
    for path in ("/v1/models", "/v1/datasets"):
        content = document["paths"][path]["post"]["requestBody"]["content"]
        assert set(content) == {"multipart/form-data", "application/json"}
        assert content["application/json"]["schema"]["properties"]["upload"]["pattern"].startswith("^upl_")
        assert "$ref" not in str(content["application/json"])

"""The service as an outside client sees it: plain HTTP, nothing of the server's code."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import httpx

Json = dict[str, Any]
OnJob = Callable[[Json], None]


class ServiceAnswerError(Exception):
    """The service refused a request; `problem` is its explanation."""

    def __init__(self, problem: Json) -> None:
        super().__init__(f"{problem.get('status')} {problem.get('code')}: {problem.get('detail')}")
        self.problem = problem


class Client:
    """Uploads, jobs and downloads on one service."""

    def __init__(self, url: str, api_key: str) -> None:
        self._http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {api_key}"}, timeout=120)

    def __enter__(self) -> Self:
        """Use the client in a `with` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self._http.close()

    def upload_model(self, weights: Path, architecture: Json, *, name: str) -> Json:
        """Upload a network and wait until it has been inspected."""
        return self._upload("models", weights, architecture, name)

    def upload_dataset(self, file: Path, spec: Json, *, name: str) -> Json:
        """Upload a dataset and wait until it has been inspected."""
        return self._upload("datasets", file, spec, name)

    def submit(self, job: Json, *, idempotency_key: str | None = None) -> Json:
        """Queue a job."""
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return _checked(self._http.post("/v1/jobs", json=job, headers=headers))

    def get(self, path: str, **parameters: Any) -> Json:
        """Any resource."""
        return _checked(self._http.get(path, params=parameters))

    def wait(self, job: Json, *, on_change: OnJob | None = None, timeout_s: float = 600) -> Json:
        """The job once it has ended, telling `on_change` about each change on the way."""
        deadline = time.monotonic() + timeout_s
        while job["status"] in ("queued", "running"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{job['id']} is still {job['status']} after {timeout_s} s")
            job = self.get(job["links"]["self"], wait=20, after=job["last_event"])
            if on_change is not None:
                on_change(job)
        return job

    def download(self, path: str, destination: Path) -> Path:
        """A file, checked against its ETag (the SHA-256)."""
        sha256 = hashlib.sha256()
        with self._http.stream("GET", path) as response, destination.open("wb") as file:
            if response.is_error:
                response.read()
            _check(response)
            for chunk in response.iter_bytes():
                sha256.update(chunk)
                file.write(chunk)
        if response.headers["etag"] != f'"{sha256.hexdigest()}"':
            raise OSError(f"{destination} arrived damaged: its SHA-256 is not the ETag")
        return destination

    def _upload(self, collection: str, file: Path, spec: Json, name: str) -> Json:
        with file.open("rb") as stream:
            form = {"spec": json.dumps(spec), "name": name}
            asset = _checked(self._http.post(f"/v1/{collection}", data=form, files={"file": (file.name, stream)}))
        while asset["status"] == "processing":
            asset = self.get(asset["links"]["self"], wait=20)
        if asset["status"] == "rejected":
            raise ServiceAnswerError(asset["error"])
        return asset


def _checked(response: httpx.Response) -> Json:
    _check(response)
    body: Json = response.json()
    return body


def _check(response: httpx.Response) -> None:
    if response.is_error:
        raise ServiceAnswerError(response.json())

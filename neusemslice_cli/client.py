"""The service as an outside client sees it: plain HTTP, nothing of the server's code."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import httpx

from neusemslice_cli.sending import OnProgress, Sending

Json = dict[str, Any]
OnJob = Callable[[Json], None]

FORM_MAX_BYTES = 64 * 1024 * 1024
"""Larger files go in parts."""


class ServiceAnswerError(Exception):
    """The service refused a request; `problem` is its explanation."""

    def __init__(self, problem: Json) -> None:
        super().__init__(f"{problem.get('status')} {problem.get('code')}: {problem.get('detail')}")
        self.problem = problem


class UploadInterruptedError(Exception):
    """The connection was lost; `upload_id` goes on from what has arrived."""

    def __init__(self, upload_id: str) -> None:
        super().__init__(f"the upload {upload_id} was interrupted; what has arrived need not be sent again")
        self.upload_id = upload_id


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

    def upload_file(
        self, file: Path, *, name: str = "", upload_id: str | None = None, on_progress: OnProgress = lambda *_: None
    ) -> Json:
        """Send a file in parts; with `upload_id`, only those that an interrupted upload of the file still lacks.

        Raises:
            UploadInterruptedError: the service cannot be reached any more; names the upload.
        """
        if upload_id is None:
            body = {"size_bytes": file.stat().st_size, "name": name or file.name}
            upload = _checked(self._http.post("/v1/uploads", json=body))
        else:
            upload = self.get(f"/v1/uploads/{upload_id}")
        try:
            return Sending(self._http, _check, file, upload, on_progress).run()
        except httpx.TransportError as error:
            raise UploadInterruptedError(upload["id"]) from error

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

    def post(self, path: str, body: Json) -> Json:
        """Make something."""
        return _checked(self._http.post(path, json=body))

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
        with self._http.stream("GET", path, follow_redirects=True) as response, destination.open("wb") as file:
            if response.is_error:
                response.read()
            _check(response)
            for chunk in response.iter_raw():
                sha256.update(chunk)
                file.write(chunk)
        first = response.history[0] if response.history else response  # an object store has ETags of its own
        if first.headers["etag"] != f'"{sha256.hexdigest()}"':
            raise OSError(f"{destination} arrived damaged: its SHA-256 is not the ETag")
        return destination

    def _upload(self, collection: str, file: Path, spec: Json, name: str) -> Json:
        if file.stat().st_size > FORM_MAX_BYTES:
            made_of = {"upload": self.upload_file(file, name=name)["id"], "spec": spec, "name": name}
            asset = _checked(self._http.post(f"/v1/{collection}", json=made_of))
        else:
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

"""The service as an outside client sees it: plain HTTP, nothing of the server's code."""

import json
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Self

import urllib3
from urllib3.exceptions import HTTPError

from neusemslice_cli.answers import Json, ServiceAnswerError, body_of, check
from neusemslice_cli.receiving import save
from neusemslice_cli.sending import PARTS_AT_ONCE, OnProgress, Sending

OnJob = Callable[[Json], None]

FORM_MAX_BYTES = 64 * 1024 * 1024
"""Larger files go in parts."""
TIMEOUT = urllib3.Timeout(connect=10, read=120)


class UploadInterruptedError(Exception):
    """The connection was lost; `upload_id` goes on from what has arrived."""

    def __init__(self, upload_id: str) -> None:
        super().__init__(f"the upload {upload_id} was interrupted; what has arrived need not be sent again")
        self.upload_id = upload_id


class Client:
    """Uploads, jobs and downloads on one service."""

    def __init__(self, url: str, api_key: str) -> None:
        self._url = url.rstrip("/")
        self._key = {"Authorization": f"Bearer {api_key}"}
        self._http = urllib3.PoolManager(maxsize=PARTS_AT_ONCE, timeout=TIMEOUT, retries=False)

    def __enter__(self) -> Self:
        """Use the client in a `with` block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connections."""
        self._http.clear()

    def upload_file(
        self, file: Path, *, name: str = "", upload_id: str | None = None, on_progress: OnProgress = lambda *_: None
    ) -> Json:
        """Send a file in parts; with `upload_id`, only those that an interrupted upload of the file still lacks.

        Raises:
            UploadInterruptedError: the service cannot be reached any more; names the upload.
        """
        if upload_id is None:
            body = {"size_bytes": file.stat().st_size, "name": name or file.name}
            upload = self.post("/v1/uploads", body)
        else:
            upload = self.get(f"/v1/uploads/{upload_id}")
        try:
            return Sending(self._request, file, upload, on_progress).run()
        except HTTPError as error:
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
        return body_of(self._request("POST", "/v1/jobs", json=job, headers=headers))

    def post(self, path: str, body: Json) -> Json:
        """Make something."""
        return body_of(self._request("POST", path, json=body))

    def get(self, path: str, **parameters: Any) -> Json:
        """Any resource."""
        return body_of(self._request("GET", path, fields=parameters))

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
        """A file, checked against its ETag (the SHA-256).

        Raises:
            OSError: it arrived damaged.
        """
        response = self._request("GET", path, preload_content=False)
        check(response)
        etag = response.headers["etag"]
        if response.status == HTTPStatus.TEMPORARY_REDIRECT:
            response.release_conn()
            response = self._http.request("GET", response.headers["location"], preload_content=False)
            if response.status != HTTPStatus.OK:
                raise OSError(f"the object store answered {response.status} instead of {path}")
        if etag != f'"{save(response, destination)}"':
            raise OSError(f"{destination} arrived damaged: its SHA-256 is not the ETag")
        return destination

    def _request(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, **parts: Any
    ) -> urllib3.BaseHTTPResponse:
        return self._http.request(method, self._url + path, headers=self._key | (headers or {}), **parts)

    def _upload(self, collection: str, file: Path, spec: Json, name: str) -> Json:
        if file.stat().st_size > FORM_MAX_BYTES:
            made_of = {"upload": self.upload_file(file, name=name)["id"], "spec": spec, "name": name}
            asset = self.post(f"/v1/{collection}", made_of)
        else:
            form = {"spec": json.dumps(spec), "name": name, "file": (file.name, file.read_bytes())}
            asset = body_of(self._request("POST", f"/v1/{collection}", fields=form))
        while asset["status"] == "processing":
            asset = self.get(asset["links"]["self"], wait=20)
        if asset["status"] == "rejected":
            raise ServiceAnswerError(asset["error"])
        return asset

"""The service's settings, read from the environment once, at the edge of each process."""

import os
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic_settings import BaseSettings, SettingsConfigDict

GIB = 1024**3
MIB = 1024**2


def physical_memory_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Settings(BaseSettings):
    """Every setting; each is read from `NEUSEMSLICE_<NAME>` unless an alias is given."""

    model_config = SettingsConfigDict(env_prefix="NEUSEMSLICE_", populate_by_name=True)

    data_dir: Path = Path("neusemslice-data")
    """Holds the stored bytes, the work folders and, by default, the embedded Postgres."""
    database_url: str | None = Field(default=None, validation_alias="DATABASE_URL")
    """Postgres to use. Without it a private server is started under the data folder."""
    redis_url: str | None = Field(default=None, validation_alias="REDIS_URL")
    """Redis for Celery. Without it the local dispatcher polls the jobs table."""

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    keyless: bool = False
    """Serve without API keys, as the default project. Refused unless the host is loopback."""
    key_cache_s: NonNegativeFloat = 5.0
    """How long an API process may go on with what it knows of a key: within this time it notices that one was revoked
    elsewhere, and that a project's request limit has changed."""
    audit_kept_s: PositiveFloat = 365 * 24 * 3600.0
    """Who changed what is forgotten after this long."""

    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    """Where the API answers `GET /metrics`, to anybody who can reach it. Without it there are no metrics."""

    max_body_bytes: PositiveInt = 2 * GIB
    """Largest request body: a model or a dataset."""
    min_free_bytes: NonNegativeInt = GIB
    """With less than this left on the data folder's file system, `/readyz` says so."""
    max_json_bytes: PositiveInt = MIB
    """Largest JSON request body."""
    max_upload_bytes: PositiveInt = 64 * GIB
    """Largest file that may come in parts."""
    upload_part_bytes: PositiveInt = 64 * MIB
    """Size of a part; larger only where a file would have more than 10,000 of them."""
    upload_ttl_s: PositiveFloat = 24 * 3600.0
    """An upload to which no part was added for this long is removed."""
    long_poll_max_s: PositiveFloat = 60.0

    lease_s: PositiveFloat = 30.0
    """A running job whose supervisor has been silent for this long is taken away from it."""
    heartbeat_s: PositiveFloat = 0.5
    """How often a supervisor renews its lease, passes progress on and looks for a cancel request."""
    beat_s: PositiveFloat = 5.0
    """How often a worker says that it lives. After three beats missed it is taken for dead."""
    poll_s: PositiveFloat = 2.0
    """How often dispatcher, relay and reaper look at the tables when no notification wakes them."""
    republish_after_s: PositiveFloat = 30.0
    """A queued job older than this is announced again: its message may have been lost."""
    max_attempts: PositiveInt = 3
    drain_notice_s: NonNegativeFloat = 0.0
    """After SIGTERM the API goes on for so long while `/readyz` says `draining`: traffic goes elsewhere first."""
    drain_grace_s: NonNegativeFloat = 3.0
    """How long, then, requests may take to end, and a worker's jobs to end or to reach their next checkpoint."""
    cancel_grace_s: PositiveFloat = 0.5
    """Time between SIGTERM and SIGKILL for a child that has to stop."""

    store_url: str | None = None
    """Where blobs are kept: `s3://bucket/prefix`, with credentials from the standard AWS environment. Without it, in
    the data folder."""
    store_endpoint_url: str | None = None
    """Address of an S3 API that is not Amazon's."""
    store_cache_bytes: PositiveInt = 64 * GIB
    """Blobs of an object store that each machine keeps in its data folder, those used last."""
    gc_every_s: PositiveFloat = 3600.0
    gc_grace_s: PositiveFloat = 24 * 3600.0
    """What was put, used or deleted within this time is not collected yet. It must be longer than storing one job's
    outputs takes."""
    analysis_kept_s: PositiveFloat = 30 * 24 * 3600.0
    """A stored analysis that no job has used for this long is removed."""
    analysis_max_bytes: PositiveInt = 64 * GIB
    """All stored analyses together; beyond it, those go first that were used longest ago."""

    job_timeout_s: PositiveFloat = 24 * 3600.0
    inspection_timeout_s: PositiveFloat = 120.0
    """Inspections share a queue, so that one that takes long holds up every upload: this is all the time they get."""
    job_memory_bytes: PositiveInt = Field(default_factory=physical_memory_bytes)
    """Writable memory one job's process may map."""
    job_file_bytes: PositiveInt = 64 * GIB
    """Largest single file one job's process may write."""
    job_checkpoint_bytes: PositiveInt = 16 * GIB
    """What a job's attempt may leave for the next one, which otherwise begins anew."""
    job_open_files: PositiveInt = 1024
    """Files that one job's process may have open at once."""
    warm_start: bool = True
    """Fork jobs' processes from one that has loaded torch; otherwise each loads it for itself, which takes seconds."""
    sandbox: Literal["required", "best"] = "best"
    """Whether a worker refuses to work where the kernel cannot keep jobs from files and network, or does its best."""
    device: str = "cpu"
    """What transitions call the device of this worker's jobs. `neusemslice worker --gpus` sets it for each worker."""
    job_threads: PositiveInt = Field(default_factory=lambda: os.cpu_count() or 1)

    webhook_allow_http: bool = False
    """Take webhook addresses with http:// too."""
    webhook_allowed_networks: list[IPv4Network | IPv6Network] = Field(default_factory=list)
    """Networks of internal receivers, such as ["10.1.2.0/24"]. Webhooks otherwise reach the public internet only."""
    webhook_timeout_s: PositiveFloat = 10.0
    """All the time that a receiver gets to take one message."""
    webhook_disable_after_s: PositiveFloat = 5 * 24 * 3600.0
    """A webhook that has taken nothing for so long, though sent to, is disabled."""

    @property
    def blob_dir(self) -> Path:
        """Where the content-addressed store keeps its files."""
        return self.data_dir / "blobs"

    @property
    def upload_dir(self) -> Path:
        """Where the parts of unfinished uploads are; on the same file system as the blobs."""
        return self.data_dir / "uploads"

    @property
    def cache_dir(self) -> Path:
        """Where this machine keeps blobs of an object store."""
        return self.data_dir / "cache"

    @property
    def work_dir(self) -> Path:
        """Where the attempt folders of running jobs are."""
        return self.data_dir / "work"

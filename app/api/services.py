"""What the API is made of."""

from dataclasses import dataclass, field

from app.api.changes import ChangeListener
from app.api.completions import Completions
from app.api.failed_authentications import FailedAuthentications
from app.api.file_threads import FileThreads
from app.api.key_cache import KeyCache
from app.api.request_rates import RequestRates
from app.artifacts.staging import Staging
from app.artifacts.store import BlobStore
from app.db import Database
from app.jobs.outlook import Outlook
from app.jobs.queue import JobQueue
from app.settings import Settings


@dataclass(frozen=True)
class Services:
    """Everything an endpoint may need, made once for the process."""

    settings: Settings
    database: Database
    store: BlobStore
    queue: JobQueue
    listener: ChangeListener
    outlook: Outlook
    staging: Staging
    completions: Completions
    file_threads: FileThreads
    keys: KeyCache = field(default_factory=KeyCache)
    rates: RequestRates = field(default_factory=RequestRates)
    failed_authentications: FailedAuthentications = field(default_factory=FailedAuthentications)

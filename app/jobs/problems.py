"""The error object of a job: the same shape as an HTTP problem (RFC 9457), so that clients read one shape."""

from app.json_object import JsonObject

TYPE_BASE = "urn:neusemslice:problem:"
OUT_OF_MEMORY = "out_of_memory"

_FEWER = "Lower batch_size or samples_per_category, or use a smaller network or input, then retry."
_SMALLER = {
    "inspect_model": "Upload a network with smaller layers or a smaller input_shape, or ask the operator to raise "
    "NEUSEMSLICE_JOB_MEMORY_BYTES.",
    "inspect_dataset": "Upload smaller or fewer samples, or ask the operator to raise NEUSEMSLICE_JOB_MEMORY_BYTES.",
}
"""What to do where memory ran out; an upload cannot be inspected again."""
_OR_ASK = "or ask the operator to raise NEUSEMSLICE_INSPECTION_TIMEOUT_S."
_TIMED_OUT = {
    "inspect_model": (
        "The inspection of the model",
        f"Upload a network with fewer operations or a smaller input_shape, {_OR_ASK}",
    ),
    "inspect_dataset": (
        "The inspection of the dataset",
        f"Upload fewer samples, or as safetensors or .npz, which are read faster than images, {_OR_ASK}",
    ),
}
"""What ran out of time, and what to do. Other kinds of jobs analyse samples."""
_STAGES = {
    "load": "building the network and reading its weights",
    "trace": "running the network on one sample",
    "import": "reading the samples",
}
"""The stages of an inspection, in words."""


def problem(code: str, detail: str, *, title: str = "", hint: str = "", retryable: bool = False) -> JsonObject:
    """A problem object without HTTP status."""
    return {
        "type": TYPE_BASE + code,
        "title": title or code.replace("_", " ").capitalize(),
        "code": code,
        "detail": detail,
        "hint": hint,
        "retryable": retryable,
    }


def internal_error(error: Exception) -> JsonObject:
    """A fault of the service itself."""
    hint = "This is a fault of the service; its log has the details. A retry may help."
    return problem("internal_error", f"The job failed unexpectedly: {type(error).__name__}.", hint=hint, retryable=True)


def worker_lost(attempt: int) -> JsonObject:
    """The job's worker fell silent, and no attempt is left."""
    return problem(
        "worker_lost",
        f"The worker fell silent in attempt {attempt}, and no attempt is left.",
        hint="Look at the worker's log (memory?), then POST …/retry.",
        retryable=True,
    )


def child_died(kind: str, reason: str, attempt: int) -> JsonObject:
    """The job's own process died, and no attempt is left."""
    return problem(
        "process_died",
        f"The job's process {reason} in attempt {attempt}, and no attempt is left.",
        hint=f"It may need more memory than the worker grants. {_SMALLER.get(kind, _FEWER)}",
        retryable=kind not in _SMALLER,
    )


def out_of_memory(kind: str, limit_bytes: int) -> JsonObject:
    """The job's process may not have as much memory as it needs."""
    what = {"inspect_model": "The network", "inspect_dataset": "The dataset"}.get(kind)
    limit = f"{limit_bytes / 1024**3:.3g} GiB"
    if what is None:
        detail = f"The job needs more memory than the {limit} that it may use, or than the GPU has."
    else:
        detail = f"{what} is too large for the {limit} of memory that an inspection may use."
    return problem(OUT_OF_MEMORY, detail, hint=_SMALLER.get(kind, _FEWER), retryable=kind not in _SMALLER)


def disk_full(kind: str) -> JsonObject:
    """The worker's disk is full."""
    again = "upload it again." if kind in _SMALLER else "then POST …/retry."
    hint = f"Ask the operator to free space under the worker's NEUSEMSLICE_DATA_DIR, {again}"
    return problem("disk_full", "The worker has no space left for the files of this job.", hint=hint, retryable=True)


def file_too_large(kind: str) -> JsonObject:
    """The job wrote a file larger than one may be."""
    what = "Upload smaller or fewer samples, or a smaller network" if kind in _SMALLER else "Use a smaller network"
    hint = f"{what}, or ask the operator to raise NEUSEMSLICE_JOB_FILE_BYTES."
    return problem("file_too_large", "A file of this job is larger than a job's file may be.", hint=hint)


def timed_out(kind: str, stage: str, limit_s: float, *, resumable: bool) -> JsonObject:
    """The job ran longer than it may; `stage` is the last that it reported. A retry may go on from a checkpoint."""
    what, hint = _TIMED_OUT.get(kind, ("The job", "Analyse fewer samples or train fewer epochs, in another job."))
    if resumable:
        hint = "POST …/retry: the job goes on from its last checkpoint."
    where = f", and was still {_STAGES.get(stage, f'at {stage!r}')}" if stage else ""
    return problem("timeout", f"{what} took longer than {limit_s:g} s{where}.", hint=hint, retryable=resumable)

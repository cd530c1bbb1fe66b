"""The error object of a job: the same shape as an HTTP problem (RFC 9457), so that clients read one shape."""

from app.db import JsonObject

TYPE_BASE = "urn:neusemslice:problem:"

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


def child_died(reason: str, attempt: int) -> JsonObject:
    """The job's own process died, and no attempt is left."""
    return problem(
        "process_died",
        f"The job's process {reason} in attempt {attempt}, and no attempt is left.",
        hint="It may need more memory than the worker grants: lower batch_size or samples_per_category, then retry.",
        retryable=True,
    )


def timed_out(kind: str, stage: str, limit_s: float) -> JsonObject:
    """The job ran longer than it may; `stage` is the last that it reported."""
    what, hint = _TIMED_OUT.get(kind, ("The job", "Analyse fewer samples, then retry."))
    where = f", and was still {_STAGES.get(stage, f'at {stage!r}')}" if stage else ""
    return problem("timeout", f"{what} took longer than {limit_s:g} s{where}.", hint=hint)

"""The body of a job like another."""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from app.api.problems import explain
from app.errors import ConflictError, InvalidInputError
from app.jobs.fairness import priority_of
from app.jobs.orm import JobRow
from app.jobs.specs import JOB_KINDS, ClientSpec, JobSpec

_SPEC: TypeAdapter[ClientSpec] = TypeAdapter(JobSpec)


def parse_changed(original: JobRow, changes: Mapping[str, Any]) -> ClientSpec:
    """What `original` was asked to do, with `changes` as a JSON merge patch (RFC 7396). A deadline is not taken over.

    Raises:
        ConflictError: it is an inspection, which follows an upload and cannot be asked for.
        InvalidInputError: what comes out is no job; points at the fields.
    """
    if original.kind not in JOB_KINDS:
        raise ConflictError(
            f"The job {original.id} is the inspection of an upload.", hint="Upload the file again to have it inspected."
        )
    asked = original.spec | {
        "metadata": original.metadata_,
        "priority": priority_of(original),
        "max_runtime_s": original.max_runtime_s,
    }
    try:
        return _SPEC.validate_python(merged(asked, changes))
    except ValidationError as error:
        found = [dict(item) | {"loc": item["loc"][1:] or item["loc"]} for item in error.errors()]
        errors, hint = explain(found)
        detail = "; ".join(f"{item.pointer or '/'}: {item.detail}" for item in errors[:5])
        raise InvalidInputError(f"The changed job is not valid: {detail}.", errors=errors, hint=hint) from error


def merged(value: Any, patch: Any) -> Any:
    """RFC 7396: members of the patch replace, null removes, the rest stays."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(value) if isinstance(value, Mapping) else {}
    for name, item in patch.items():
        if item is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), item)
    return result

"""Inspections: jobs that the service queues itself when something is uploaded."""

from typing import Literal

from app.jobs.specs.common import DatasetId, ModelId, Strict


class InspectModelSpec(Strict):
    """Read an uploaded network, check it, and store it in canonical form."""

    kind: Literal["inspect_model"]
    model_id: ModelId


class InspectDatasetSpec(Strict):
    """Read an uploaded dataset, check it, and store it in canonical form."""

    kind: Literal["inspect_dataset"]
    dataset_id: DatasetId

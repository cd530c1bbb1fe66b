"""Deployments to be shot at, and a slice job on inputs that need no inspection any more."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from app.artifacts.catalog import Catalog, NewAsset, accept
from app.artifacts.orm import DatasetRow, ModelRow
from app.artifacts.stores import make_store
from app.jobs.service import JobService
from app.jobs.specs import InspectDatasetSpec, SliceSpec
from app.projects.keys import ensure_project
from neusemslice import trace
from neusemslice.checkpoint import save_checkpoint
from neusemslice.data import ImportLimits, Preprocess, import_dataset
from tests.app.webhooks.receiver import receiving
from tests.chaos.deployment import Deployment, tiny_dataset
from worker.facts import model_facts

SIZES = [16, 6, 2]
ATTEMPTS = "40"


@dataclass(frozen=True)
class Canonical:
    """A model and a dataset as their inspections would leave them."""

    model: Path
    model_facts: dict
    dataset: Path
    dataset_facts: dict


@pytest.fixture(scope="session")
def canonical(tmp_path_factory: pytest.TempPathFactory) -> Canonical:
    folder = tmp_path_factory.mktemp("canonical")
    torch.manual_seed(0)
    layers = [layer for fan_in, fan_out in pairwise(SIZES) for layer in (nn.Linear(fan_in, fan_out), nn.ReLU())]
    model = trace(nn.Sequential(nn.Flatten(), *layers[:-1]), torch.zeros(1, 1, 4, 4))
    save_checkpoint(model.graph_module, model.input_shape, folder / "model")
    (folder / "data.npz").write_bytes(tiny_dataset("canonical"))
    facts = import_dataset(
        folder / "data.npz",
        folder / "dataset",
        format="npz",
        preprocess=Preprocess.from_dict({"scale": 0.01}),
        limits=ImportLimits(),
        on_progress=None,
        should_stop=lambda: False,
    )
    return Canonical(folder / "model", model_facts(model), folder / "dataset", facts.to_dict())


@pytest.fixture
def deployment(tmp_path: Path, new_database: Callable[[], str]) -> Iterator[Deployment]:
    """Nothing runs in it yet. No kill uses its jobs' attempts up."""
    extra = {"NEUSEMSLICE_MAX_ATTEMPTS": ATTEMPTS, "NEUSEMSLICE_REPUBLISH_AFTER_S": "1"}
    deployment = Deployment(tmp_path / "data", new_database(), extra)
    with receiving() as receiver:
        deployment.tell(receiver)
        yield deployment
        deployment.stop()
    deployment.database.dispose()


def submit_slices(deployment: Deployment, canonical: Canonical, count: int) -> list[str]:
    """Queue so many slice jobs, each of an analysis of its own, without any HTTP. The jobs' ids."""
    store = make_store(deployment.settings, deployment.database)
    with deployment.database.transaction() as session:
        project = ensure_project(session, "default")
        ids = {}
        for kind, path, facts in (
            (ModelRow, canonical.model, canonical.model_facts),
            (DatasetRow, canonical.dataset, canonical.dataset_facts),
        ):
            blob = store.put_stream(io.BytesIO(path.read_bytes()), max_bytes=10**7)
            row = Catalog(session, project).add(kind, NewAsset("prepared", {}, {}), blob)
            accept(row, digest=blob.digest, size_bytes=blob.size_bytes, facts=facts)
            ids[kind] = row.id
        jobs = JobService(session, project, max_attempts=int(ATTEMPTS))
        return [
            jobs.submit(SliceSpec(kind="slice", model_id=ids[ModelRow], dataset_id=ids[DatasetRow], seed=seed)).id
            for seed in range(count)
        ]


def submit_inspections(deployment: Deployment, *keys: str, images: int = 8) -> list[str]:
    """Queue inspections of datasets, tiny unless told, without any HTTP. The jobs' ids."""
    store = make_store(deployment.settings, deployment.database)
    with deployment.database.transaction() as session:
        project = ensure_project(session, "default")
        jobs, catalog = JobService(session, project, max_attempts=int(ATTEMPTS)), Catalog(session, project)
        ids = []
        for key in keys:
            blob = store.put_stream(io.BytesIO(tiny_dataset(key, images)), max_bytes=10**6)
            dataset = catalog.add(DatasetRow, NewAsset(key, {"format": "auto"}, {}), blob)
            ids.append(jobs.inspect(InspectDatasetSpec(kind="inspect_dataset", dataset_id=dataset.id)).id)
        return ids

"""What holds for the packages as a whole."""

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import yaml

import neusemslice
from app.jobs.specs import JOB_KINDS, SlicingParams
from neusemslice.config import MetricName, SlicingConfig
from neusemslice.contribution import METRICS
from neusemslice_cli.main import app as command_line

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    "module", ["app.main", "app.jobs.specs", "neusemslice.config", "neusemslice.comparison_config", "neusemslice.data"]
)
def test_importing_it_does_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_metric_of_the_config_exists_and_no_other() -> None:
    assert set(METRICS) == set(get_args(MetricName))


def test_the_public_surface() -> None:
    for name in neusemslice.__all__:
        assert getattr(neusemslice, name) is not None
    with pytest.raises(AttributeError):
        neusemslice.nothing  # noqa: B018


def test_names_stay_functions_after_their_modules_are_imported() -> None:
    code = "import neusemslice.restructuring; from neusemslice import restructure; assert callable(restructure)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_services_slicing_parameters_are_the_librarys() -> None:
    served_elsewhere = {"seed", "memory_budget_bytes", "resolved_cut"}
    assert set(SlicingParams.model_fields) == {field.name for field in fields(SlicingConfig)} - served_elsewhere
    assert SlicingParams().to_config(seed=0) == SlicingConfig()


def test_the_compose_file_runs_commands_that_exist() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    own = {name: service["command"] for name, service in services.items() if name not in ("postgres", "redis")}
    known = {command.name or command.callback.__name__ for command in command_line.registered_commands}
    assert set(own) == {"api", "worker", "inspector", "relay"}
    for command in own.values():
        assert command[0] == "neusemslice"
        assert command[1] in known
        help_text = subprocess.run(
            [sys.executable, "-m", "neusemslice_cli.main", command[1], "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={"COLUMNS": "200", "PATH": ""},
        ).stdout
        assert all(word in help_text for word in command[2:] if word.startswith("--"))
    assert set(JOB_KINDS) == {"slice", "restructure", "readapt", "increment", "compare"}

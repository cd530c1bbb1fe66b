"""What holds for the packages as a whole."""

import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import get_args

import pytest
import yaml

import neusemslice
from app.jobs.specs import JOB_KINDS, SlicingParams
from app.settings import Settings
from neusemslice.config import MetricName, SlicingConfig
from neusemslice.contribution import METRICS
from neusemslice_cli.companions import STOP_S
from neusemslice_cli.main import app as command_line
from worker.couriers import COURIERS, LAST_MESSAGE_S

ROOT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


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


def seconds(duration: str) -> int:
    """A duration as docker-compose.yml has it."""
    units = {"h": 3600, "m": 60, "s": 1}
    assert re.fullmatch(r"(\d+[hms])+", duration)
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))


@pytest.mark.parametrize("name", ["api", "worker", "inspector", "relay"])
def test_compose_waits_until_a_service_has_drained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = COMPOSE[name]
    prefix, own = "NEUSEMSLICE_", [variable for variable in service["environment"] if variable.startswith("NEUSEM")]
    for variable in own:
        assert variable.removeprefix(prefix).lower() in Settings.model_fields
        monkeypatch.setenv(variable, service["environment"][variable])
    settings = Settings()
    drains = settings.drain_notice_s + settings.drain_grace_s
    then = {"api": 0, "relay": COURIERS * LAST_MESSAGE_S}.get(name, 2 * STOP_S)
    assert seconds(service["stop_grace_period"]) >= drains + then
    if name == "api":
        assert settings.drain_notice_s == 2 * seconds(service["healthcheck"]["interval"])
    if name == "inspector":
        assert settings.drain_grace_s >= settings.inspection_timeout_s


def test_the_image_installs_what_traces_need_with_a_command_that_works() -> None:
    image = (ROOT / "Dockerfile.gpu").read_text()
    (arguments,) = re.findall(r"^RUN uv (pip install .*-r pyproject\.toml)$", image, re.MULTILINE)
    here = arguments.replace("--system --no-cache", f"--python {sys.executable} --dry-run --offline")
    uv = Path(sys.executable).parent / "uv"
    done = subprocess.run([uv, *here.split()], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "Would make no changes"), done.stderr
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installed = [requirement for extra in re.findall(r"--extra (\S+)", arguments) for requirement in extras[extra]]
    assert {re.split("[^a-z-]", requirement)[0] for requirement in installed} == {
        "opentelemetry-exporter-otlp-proto-http",
        "opentelemetry-sdk",
    }


def test_the_compose_file_runs_commands_that_exist() -> None:
    own = {name: service["command"] for name, service in COMPOSE.items() if name not in ("postgres", "redis")}
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

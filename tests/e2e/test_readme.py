"""What the README tells people to paste works when pasted."""

import re
import subprocess
import sys
from pathlib import Path

from neusemslice import load_checkpoint
from tests.e2e.conftest import Service

ROOT = Path(__file__).parent.parent.parent


def test_the_walk_through(service: Service, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text()
    (block,) = re.findall(r"```bash\n(.*?)```", readme, re.DOTALL)
    here = block.replace("http://127.0.0.1:8000", service.url)
    here = here.replace("$OLDPWD/neusemslice-data", str(service.data_dir)).replace(
        "$OLDPWD/.venv/bin/python", sys.executable
    )
    here = here.replace('"$(mktemp -d)"', str(tmp_path))
    assert here.count(str(service.data_dir)) == here.count(str(tmp_path)) == 1
    pasted = ["bash", "-euo", "pipefail", "-c", here]
    done = subprocess.run(pasted, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"status":"succeeded"' in done.stdout.replace(" ", "")
    assert "Linear(in_features=" in done.stdout
    small = load_checkpoint(tmp_path / "small.safetensors")
    assert sum(parameter.numel() for parameter in small.parameters()) < 64 * 256 + 256 + 256 * 10 + 10


def test_the_readme_is_short_and_names_both_commands_first() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 150
    assert [line.split("#")[0].strip() for line in lines[6:14] if line.startswith("make")] == ["make demo", "make test"]

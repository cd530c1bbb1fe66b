"""The description of the API as it is committed. `make openapi` renews it; its diff is what clients will notice."""

import json
from pathlib import Path

from app.db import Database
from app.main import create_app
from app.settings import Settings

PATH = Path(__file__).with_name("openapi.json")


def describe() -> str:
    """The description of this code, as JSON with sorted keys. No server is needed, and no database."""
    app = create_app(Settings(), Database("postgresql://nobody@localhost/none"))
    return json.dumps(app.openapi(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    PATH.write_text(describe())

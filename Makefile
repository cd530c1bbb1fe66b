SHELL := /bin/bash
PY := .venv/bin/python
INSTALLED := .venv/.installed

.PHONY: help setup demo test chaos check bench serve lock openapi
help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(INSTALLED): requirements.lock pyproject.toml
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: install it, then run make again."; exit 1; }
	@test -x $(PY) || python3 -m venv .venv || { echo "python3 could not make a virtual environment: install the package python3-venv, then run make again."; exit 1; }
	.venv/bin/pip install --quiet --disable-pip-version-check uv==0.13.9
	.venv/bin/uv pip install --quiet --python $(PY) -r requirements.lock
	.venv/bin/uv pip install --quiet --python $(PY) --no-deps -e .
	@touch $@

setup: $(INSTALLED) ## the environment alone, in .venv

demo: $(INSTALLED) ## the whole service on real data, as an outside client would use it
	$(PY) -m neusemslice_cli.main demo

test: $(INSTALLED) ## every test: the library's side by side, then those with servers and time limits one by one
	$(PY) -m pytest -n auto tests/neusemslice
	$(PY) -m pytest --ignore tests/neusemslice

chaos: $(INSTALLED) ## hundreds of kills, and servers that go away: what `make test` has no time for
	$(PY) -m pytest -m "chaos or not chaos" -s tests/chaos

check: $(INSTALLED) ## lint, types, import arrows, migrations in step with the models
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports
	$(PY) -m neusemslice_cli.main migrate --check

bench: $(INSTALLED) ## the benchmarks
	$(PY) -m benchmarks

serve: $(INSTALLED) ## API, embedded Postgres and a local worker on 127.0.0.1:8000
	$(PY) -m neusemslice_cli.main serve

openapi: $(INSTALLED) ## renew tests/app/api/openapi.json, the API's description that clients rely on
	$(PY) -m tests.app.api.snapshot

lock: $(INSTALLED) ## renew requirements.lock
	.venv/bin/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate --all-extras --group dev pyproject.toml -o requirements.lock

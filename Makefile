# make quickstart   install into .venv and run the whole chain on the embedded sandbox
# make fast         tests that need neither Ray nor another process
# make test         linters, type checker, and the tests of all tiers but system and slow, of which it runs one kill and one job
# make test-all     every test but the exhaustive ones
# make lint         linters and type checker alone

PYTHON ?= $(shell command -v python3.11 || echo python3)
TORCH ?= torch==2.13.0

.PHONY: quickstart fast lint test test-all clean

quickstart: .venv/.installed
	.venv/bin/nlft-ray quickstart

fast: .venv/.installed-test
	.venv/bin/pytest -m unit

lint: .venv/.installed-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

test: lint
	.venv/bin/pytest -m "unit or ray or browser or smoke"

test-all: lint
	.venv/bin/pytest

.venv/.installed: pyproject.toml
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv; the first time this takes some minutes."
	.venv/bin/python -m pip install --quiet $(TORCH)
	.venv/bin/python -m pip install --quiet --editable .
	touch $@

.venv/.installed-test: .venv/.installed
	.venv/bin/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf .venv runs

# make quickstart   install into .venv and run the whole chain on the embedded sandbox
# make test         install the test extras and run linter, type checker and tests

PYTHON ?= $(shell command -v python3.11 || echo python3)
TORCH ?= torch==2.13.0

.PHONY: quickstart test clean

quickstart: .venv/.installed
	.venv/bin/nlft-ray quickstart

test: .venv/.installed-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo
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

# make quickstart   install into .venv and run the whole chain on the embedded sandbox
# make fast         tests that need neither Ray nor another process
# make test         linters, type checker, and the tests of all tiers but system and slow, of which it runs one kill and one job
# make test-all     every test but the exhaustive ones
# make lint         linters and type checker alone
# make coverage     which lines the tests of tier unit run
# make constraints  the newest versions that pyproject.toml admits into constraints.txt; needs uv

PYTHON ?= $(shell command -v python3.11 || echo python3)
INSTALL = .venv/bin/python -m pip install --quiet --constraint constraints.txt

.PHONY: quickstart fast lint test test-all coverage constraints clean

quickstart: .venv/.installed
	.venv/bin/nlft-ray quickstart

fast: .venv/.installed-test
	.venv/bin/pytest -m unit

lint: .venv/.installed-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/codespell
	.venv/bin/mypy
	.venv/bin/lint-imports --no-logo

test: lint
	.venv/bin/pytest -m "unit or ray or browser or smoke"

test-all: lint
	.venv/bin/pytest

.venv/.installed: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv; the first time this takes some minutes."
	$(INSTALL) --editable .
	touch $@

.venv/.installed-test: .venv/.installed
	$(INSTALL) --editable '.[test]'
	touch $@

coverage: .venv/.installed-test
	.venv/bin/pytest -m unit --cov --cov-report=term

constraints:
	uv pip compile --quiet --upgrade --universal --fork-strategy fewest --python-version 3.11 --extra test \
	    --no-annotate --custom-compile-command "make constraints" --output-file constraints.txt pyproject.toml

clean:
	rm -rf .venv runs

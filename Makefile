PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-quick test-apps check docs install-systemd clean

## demo: set up, and run the demo; its mount stays until you unmount it
demo: .venv/run
	$(BIN)/kinetics-fs demo

## test: set up, and run the checks and tests of CI, but for test-apps
# Tests that measure time run by themselves after the others, with nothing beside them that takes their time.
test: .venv/test check
	timeout --kill-after=30 1500 $(PYTEST) -m "not serial and not apps and not boot"
	timeout --kill-after=30 600 $(PYTEST) -m serial --numprocesses 0

## test-quick: set up without system packages, and run the tests that need no server, no mount and no such package
test-quick: .venv/quick
	timeout --kill-after=30 600 $(PYTEST) tests/unit tests/integration -m "not serial and not server and not debian"

## test-apps: set up, boot a Debian with systemd, and use a browser
test-apps: .venv/apps
	timeout --kill-after=30 900 $(PYTEST) -m "apps or boot" --numprocesses 0

## check: format, lint, types, and the layers of imports
check: .venv/quick
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

## docs: generate the reference of settings and commands
docs: .venv/quick
	$(BIN)/python -m kinetics_fs.cli.reference docs

INSTALL := $(BIN)/python -m pip install --quiet --use-pep517 --constraint constraints.txt --editable

.venv/run: pyproject.toml constraints.txt .ci/system-packages
	PYTHON=$(PYTHON) .ci/system-packages
	$(PYTHON) -m venv .venv
	$(INSTALL) .
	touch $@

.venv/quick: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[dev]'
	touch $@

.venv/test: .venv/run .venv/quick
	PYTHON=$(PYTHON) .ci/system-packages test
	touch $@

.venv/apps: .venv/test
	PYTHON=$(PYTHON) .ci/system-packages apps
	touch $@

## install-systemd: set up, and link the programs and install the units for the whole system (as root)
install-systemd: .venv/run
	systemd/install $(BIN)

## clean: remove the virtual environment and the caches of tools
clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache

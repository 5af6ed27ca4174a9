PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check install-systemd clean

## demo: set up, and play all of kinetics-fs on this machine; a mount stays up to look around in
demo: .venv/run
	$(BIN)/kinetics-fs demo

## test: set up, and run every check that CI runs
test: .venv/test check
	timeout --kill-after=30 1500 $(BIN)/python -m pytest || \
	    { echo "Failed with four tests at a time; once more, one by one:"; \
	      timeout --kill-after=30 900 $(BIN)/python -m pytest --last-failed --last-failed-no-failures none --numprocesses 0; }

## check: format, lint, types and the layers of imports
check: .venv/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.venv/run: pyproject.toml constraints.txt .ci/system-packages
	PYTHON=$(PYTHON) .ci/system-packages
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --use-pep517 --constraint constraints.txt --editable .
	touch $@

.venv/test: .venv/run
	PYTHON=$(PYTHON) .ci/system-packages test
	$(BIN)/python -m pip install --quiet --use-pep517 --constraint constraints.txt --editable '.[dev]'
	touch $@

## install-systemd: set up, and link the programs and install the units for the whole system (as root)
install-systemd: .venv/run
	systemd/install $(BIN)

## clean: remove the virtual environment and what tools left
clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache

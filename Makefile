# `make train` and `make test` set everything up on a bare machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: setup train test test-slow fuzz check docs audit bench figure clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	@# PyTorch first, at the pinned version: every later package is content with it.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

train: $(READY)
	$(BIN)/prrfl train

test: $(READY)
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow -n auto --dist loadfile --no-loadscope-reorder --durations 5

# The fuzz tests with FUZZ times as many cases, others each time; a failing one is printed with how to repeat it.
FUZZ ?= 20
fuzz: $(READY)
	FUZZ=$(FUZZ) $(BIN)/python -m pytest tests/fuzz -n auto --dist worksteal

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Known weaknesses of the pinned versions, by a service on the internet; what it cannot say is an error.
audit: $(READY)
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

docs: $(READY)
	@# Not --quiet: warnings that are not said do not count, and --strict lets broken links pass.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(READY)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV)

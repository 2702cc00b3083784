# The interpreter that builds .venv: `make test PYTHON=python3.12` takes another one.
PYTHON ?= python3.11
BIN := .venv/bin
# Shapes and types are checked at run time, where tests are short: that takes twice as long, and coverage half as long again.
SHAPES := --jaxtyping-packages=edgeprune,tracr_bridge,programs,beartype.beartype
INSTALLED := .venv/.installed
DOCS := $(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs build/docs

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: demo test sweep docs mutants mutation slice clean help

demo: $(INSTALLED) ## recover the circuit of `reverse` and draw it
	$(BIN)/edgeprune recover reverse --picture reverse.svg

test: $(INSTALLED) ## lint, types, imports, documentation, and every test that is not for the sweep
	@echo "== ruff: lint"
	@$(BIN)/ruff check
	@echo "== ruff: format"
	@$(BIN)/ruff format --check
	@echo "== pyright: types"
	@$(BIN)/pyright
	@echo "== import-linter: direction of imports"
	@$(BIN)/lint-imports --no-logo
	@echo "== sphinx: the documentation builds without a warning"
	@$(DOCS)
	@echo "== pytest: units, properties, whole discoveries, the plugin; every program verified, certified and recovered"
	@$(BIN)/pytest

sweep: $(INSTALLED) ## shapes and coverage; every program at more seeds, every certificate, Ray: much longer
	@echo "== pytest: units and properties, with branch coverage and shapes checked"
	@$(BIN)/pytest tests/unit tests/property tests/models -m "not sweep and not mutants and not fakes" $(SHAPES) --cov --cov-report=term --cov-fail-under=90
	@echo "== pytest: every program at seed 1, every certificate, more checkpoints, larger graphs"
	@$(BIN)/pytest programs tests --circuit-seeds 2 -m sweep

docs: $(INSTALLED) ## build the documentation into build/docs, without a network
	@$(DOCS)
	@echo "open build/docs/index.html"

mutants: $(INSTALLED) ## plant bugs one at a time, and print the first test that notices each
	@$(BIN)/python tests/mutants/run_mutants.py --out docs/planted-bugs.md

mutation: $(INSTALLED) ## change the code at every place where mutmut can, and print how much is noticed: hours, resumable
	@$(BIN)/python tests/mutants/mutation.py --out build/mutation

slice: $(INSTALLED) ## the bugs that tests noticed last time, and mutmut on two modules: a quarter of an hour
	@$(BIN)/python tests/mutants/run_mutants.py --slice
	@$(BIN)/python tests/mutants/mutation.py --out build/mutation --only edgeprune/graph

$(INSTALLED): pyproject.toml constraints.txt
	@echo "== installing into .venv (minutes, the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $@

clean: ## remove .venv and everything else that was made here
	rm -rf .venv build dist *.egg-info .coverage .coverage.* htmlcov reverse.svg
	rm -rf .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@sed -nE 's/^([a-z]+):[^#]*## (.*)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

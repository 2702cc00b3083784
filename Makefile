# The interpreter that builds .venv: `make test PYTHON=python3.12` takes another one.
PYTHON ?= python3.11
BIN := .venv/bin
# Shapes and types are checked at run time where tests are short: whole discoveries would take three times as long.
SHAPES := --jaxtyping-packages=edgeprune,tracr_bridge,programs,beartype.beartype
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: demo test sweep mutants clean help

demo: $(INSTALLED) ## recover the circuit of `reverse` and draw it
	$(BIN)/edgeprune recover reverse --picture reverse.svg

test: $(INSTALLED) ## run every check but the seed sweep
	@echo "== ruff: lint"
	@$(BIN)/ruff check
	@echo "== ruff: format"
	@$(BIN)/ruff format --check
	@echo "== pyright: types"
	@$(BIN)/pyright
	@echo "== import-linter: direction of imports"
	@$(BIN)/lint-imports --no-logo
	@echo "== pytest: units and properties, with branch coverage and shapes checked"
	@$(BIN)/pytest tests/unit tests/property tests/models $(SHAPES) --cov --cov-report=term --cov-fail-under=90
	@echo "== pytest: every program, verified, certified and recovered; whole discoveries; the plugin"
	@$(BIN)/pytest tests/recovery tests/plugin tests/mutants programs

sweep: $(INSTALLED) ## every program at seeds 0 to 4, more random programs, Ray; minutes long
	@echo "== pytest: seed sweep"
	@$(BIN)/pytest programs tests --circuit-seeds 5 -m sweep

mutants: $(INSTALLED) ## plant bugs one at a time, and print the first test that notices each
	@$(BIN)/python tests/mutants/run_mutants.py

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

# The platform's everyday commands; `make help` lists them. Everything they need is set up on the way.
SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
SMOKE := $(BIN)/smoke
SUITE ?=

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.stamp ## Make .venv with the locked dependencies

# The stamp is newer than what it was made from, so a second run has nothing to do.
$(VENV)/.stamp: requirements.lock setup.py deploy/uv.lock deploy/bootstrap
	@deploy/bootstrap

up: setup ## Start the embedded platform and say where everything is
	@$(SMOKE) up

down: setup ## Stop the embedded platform
	@$(SMOKE) down

verify: setup ## Prove the platform end to end (a private one; VERIFY_ARGS=--running for the running one)
	@$(SMOKE) verify $(VERIFY_ARGS)

test: setup ## Lint, types, import contracts and the test suite
	@deploy/bootstrap test
	@$(MAKE) --no-print-directory lint
ifdef PYTEST_ARGS
	@$(BIN)/pytest $(PYTEST_ARGS)
else
	@deploy/run-tests $(BIN)/pytest $(VENV)
endif

lint: setup ## Lint, types and import contracts only
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet . && echo "ruff: clean"
	@$(BIN)/mypy --no-error-summary && echo "mypy: clean"
	@$(BIN)/lint-imports --no-logo > $(VENV)/lint-imports.log || (cat $(VENV)/lint-imports.log; exit 1)
	@echo "import contracts: kept"

bench: setup ## Measure; SUITE=landing for one suite. Writes benchmarks/results/
	@$(BIN)/python -m benchmarks.run $(SUITE)

prove: setup ## The long proofs (kills, floods); SUITE=landing for one. Writes proofs/results/
	@$(BIN)/python -m proofs.run $(SUITE)

lock: setup ## Resolve the dependencies of setup.py anew into requirements.lock
	@$(BIN)/uv pip compile setup.py --extra dev --universal --python-version 3.11 --generate-hashes -q \
	  --custom-compile-command "make lock" -o requirements.lock

.PHONY: help setup up down verify test lint bench prove lock

# Everything a developer types. `make` alone lists it.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

# The first that runs and is new enough; a name on PATH may be a shim with nothing behind it.
NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$name $(NEW_ENOUGH) 2>/dev/null && command -v $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard src lab bench tests)
SEEDS ?= 10000
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

# $(call timed,name,command): runs a command and says how long it took. Only a subshell's failure is sure to end the
# recipe: the shell lets the first half of a bare `a && b` fail.
timed = echo "==> $(1)"; SECONDS=0; ($(2)); echo "    $(1): $${SECONDS} s"

.PHONY: help setup parts demo test check lint types unit bench lab prove chaos simulate lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/installed ## make .venv with the locked packages and the upwell command
	@:

$(VENV)/installed: requirements/dev.txt pyproject.toml
	@test -n "$(PYTHON)" && "$(PYTHON)" $(NEW_ENOUGH) \
	  || { echo "upwell needs Python 3.11 or newer on PATH (or: make setup PYTHON=/path/to/python3)"; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "$(PYTHON) cannot make an environment; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@$(call timed,locked packages,$(PIP) install --require-hashes --only-binary :all: -r requirements/dev.txt)
	@$(call timed,upwell itself,$(PIP) install --no-deps --no-build-isolation --editable .)
	@touch $@

parts: setup ## fetch what the lab and the tests run: PostgreSQL, Kinesalite, DynamoDB Local, ministack
	@$(call timed,lab parts,$(BIN)/python -m lab fetch)

demo: setup ## watch a change travel from a database to AWS and back, all on this machine (ARGS=...)
	@$(BIN)/python -m lab.demo $(ARGS)

test: setup parts lint types ## everything: style, types and all tests against real local servers (ARGS=...)
	@$(call timed,all tests,$(BIN)/python -m pytest --numprocesses auto --dist loadfile --durations 15 $(ARGS))

check: setup lint types unit ## the fast part: style, types, unit tests

lint: setup
	@$(call timed,lint,$(BIN)/ruff check . && $(BIN)/ruff format --check .)

types: setup
	@$(call timed,types,$(BIN)/mypy $(SOURCES))

unit: setup
	@$(call timed,unit tests,$(BIN)/python -m pytest --numprocesses auto tests/unit $(ARGS))

bench: setup ## measure throughput and latency (ARGS=...)
	@$(BIN)/python -m bench $(ARGS)

lab: parts ## run the local servers until Ctrl-C; prints their addresses as one line of JSON
	@exec $(BIN)/python -m lab up --json

prove: parts ## the proofs in full, with figures into bench/results; hours (ARGS="wire outage")
	@$(BIN)/python -m tests.proofs $(ARGS)

chaos: parts ## half an hour of all faults at once; prints its seed (ARGS="--minutes 5 --seed 7")
	@$(BIN)/python -m tests.proofs.chaos $(ARGS)

simulate: setup ## run the pipeline through SEEDS random failures
	@$(BIN)/python -m tests.simulation --seeds $(SEEDS) $(ARGS)

# The resolver has an environment of its own, so that it is not locked by its own lock.
COMPILE = .venv-lock/bin/uv pip compile --quiet --no-config --upgrade --universal --python-version 3.11 \
  --generate-hashes --no-annotate --custom-compile-command "make lock"

lock: ## renew requirements/*.txt: the newest versions that pyproject.toml allows, with hashes
	@test -x .venv-lock/bin/uv || { "$(PYTHON)" -m venv .venv-lock && .venv-lock/bin/python -m pip --quiet install uv; }
	@$(COMPILE) pyproject.toml --extra postgres --extra sqlserver --extra sqlite --extra api -o requirements/runtime.txt
	@$(COMPILE) pyproject.toml --extra demo --extra api --group dev -o requirements/dev.txt
	@$(COMPILE) pyproject.toml --extra postgres --extra api -o src/upwell/app/stacks/function-requirements.txt
	@$(COMPILE) requirements/demo-aws.in -o src/upwell/app/demo/aws-requirements.txt

clean: ## remove everything that make made
	@rm -rf .venv .venv-* .lab build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The two commands: `make demo` and `make test`. Both make the environment first; a second call finds it made.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test check chaos clean

# Without compiled modules torch and vLLM take three times as long to import.
unexport PYTHONDONTWRITEBYTECODE

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
JARS := $(VENV)/.jars
REQUIREMENTS := requirements/dev.txt requirements/overrides.txt pyproject.toml

help:
	@echo "make demo    install what is needed, then train the tiny model (ARGS='--steps 50 --seed 0')"
	@echo "make test    install what is needed, then run the tests (ARGS='tests/deploy -x')"
	@echo "make check   lint, types, import rules"
	@echo "make chaos   kill everything and see what is lost (ARGS='--kills 300 --seed 1', '--full' or '--tests')"
	@echo "make setup   only the environment, in $(VENV)"

setup: $(INSTALLED) $(JARS)

# `python3.11` may be a shim that points nowhere, so each is asked what it is.
$(INSTALLED): $(REQUIREMENTS)
	@for candidate in python3.11 python3.12 python3; do \
	  if $$candidate -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then \
	    python=$$candidate; break; \
	  fi; \
	done; \
	if [ -z "$${python:-}" ]; then \
	  echo "make setup: no Python 3.11 or 3.12 on the path (tried python3.11, python3.12, python3); install one" >&2; \
	  exit 2; \
	fi; \
	echo "make setup: $$($$python --version) in $(VENV)"; \
	[ -x $(BIN)/python ] || $$python -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements/dev.txt
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

# Without Java and Maven there is the embedded broker, so this is no reason to stop.
$(JARS): $(INSTALLED) streams/broker/pom.xml
	@if command -v mvn >/dev/null && command -v java >/dev/null; then \
	  if $(BIN)/python -m streams.broker.install; then touch $@; else \
	    echo "make setup: Apache Kafka's jars were not resolved; the embedded broker will serve" >&2; \
	  fi; \
	else \
	  echo "make setup: no mvn or no java on the path, so no Apache Kafka; the embedded broker will serve" >&2; \
	fi

demo: setup
	@$(BIN)/eachprompt demo $(ARGS)

test: setup
	@$(BIN)/python -m pytest -m 'not chaos' -n 2 $(ARGS)

check: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

chaos: setup
	@$(BIN)/python -m benchmarks.chaos $(ARGS)

clean:
	rm -rf $(VENV) build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

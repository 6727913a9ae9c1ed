# keymailbox: every command that a person or CI runs. `make` alone lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_FLAGS := --disable-pip-version-check --quiet
PYTEST_ARGS ?=
# `make lock LOCK_ARGS=--upgrade` moves every pin to its newest release.
LOCK_ARGS ?=

# --no-emit-*: a lock names packages and hashes, never where they were fetched.
COMPILE = .venv-tools/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --no-annotate --no-config $(LOCK_ARGS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo demo-covercrypt test check serve openapi bench lock clean

help: ## list these commands
	@echo "keymailbox: make <command>"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/.ready ## make .venv from requirements/dev.lock (nothing to do when up to date)

demo: venv ## run the exchange between two tenants on this machine
	@$(BIN)/python -m demo.exchange

demo-covercrypt: venv .venv-covercrypt/.ready ## the exchange with Covercrypt keys (AGPL; in a venv of its own)
	@$(BIN)/python -m demo.exchange --covercrypt .venv-covercrypt/bin/python

test: venv ## run the tests; PYTEST_ARGS="-k name" chooses
	@$(BIN)/pytest $(PYTEST_ARGS)

check: venv ## ruff, format, mypy --strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

serve: venv ## run the whole service on loopback, with its database and broker
	@$(BIN)/python -m tests.kit.serve

openapi: venv ## write schemas/openapi.json
	@$(BIN)/python -m pki.server.openapi

bench: venv ## measure; results go to bench/results
	@$(BIN)/python -m bench

lock: .venv-tools/.ready ## renew requirements/*.lock; LOCK_ARGS=--upgrade for newer releases
	@$(COMPILE) --output-file requirements/runtime.lock pyproject.toml
	@$(COMPILE) --extra dev --output-file requirements/dev.lock pyproject.toml
	@$(COMPILE) --output-file requirements/covercrypt.lock requirements/covercrypt.in
	@$(COMPILE) --output-file requirements/tools.lock requirements/tools.in
	@if grep -nE '://|--(extra-)?index-url|--find-links' requirements/*.lock; then \
		echo "lock: a lock file names a host (above): it must not" >&2; exit 1; fi
	@echo "lock: requirements/runtime.lock, dev.lock, covercrypt.lock and tools.lock are current"

clean: ## remove environments, caches, builds and var/
	@rm -rf .venv .venv-covercrypt .venv-tools .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis \
		build dist var .coverage
	@find bench demo pki schemas tests workers -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "clean: done; 'make venv' makes the environment again"

# A changed lock makes the environment anew, so that nothing unlocked stays in it.
$(VENV)/.locked: requirements/dev.lock
	$(call environment,$(VENV),requirements/dev.lock)

# The build back end is in the lock, so that building the project fetches nothing unhashed.
$(VENV)/.ready: $(VENV)/.locked pyproject.toml
	@$(BIN)/python -m pip install $(PIP_FLAGS) --no-build-isolation --no-deps --editable .
	@touch $@
	@echo "venv: $(VENV) is ready"

.venv-covercrypt/.ready: requirements/covercrypt.lock
	$(call environment,.venv-covercrypt,requirements/covercrypt.lock)

.venv-tools/.ready: requirements/tools.lock
	$(call environment,.venv-tools,requirements/tools.lock)

define environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "venv: Python 3.11 or newer is needed, and '$(PYTHON)' is not. Next: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo "venv: '$(PYTHON)' cannot make virtual environments. Next: apt-get install python$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" >&2; exit 1; }
@echo "venv: making $(1) from $(2)"
@$(PYTHON) -m venv --clear $(1)
@$(1)/bin/python -m pip install $(PIP_FLAGS) --require-hashes --requirement $(2)
@touch $@
endef

# keymailbox: every command that a person or CI runs. `make` alone lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_FLAGS := --disable-pip-version-check --quiet
PYTEST_ARGS ?=
# How many processes test, each a file at a time; one, where it was chosen what to test. Some wait, so more than cores.
PROCESSES ?= $(if $(PYTEST_ARGS),0,$(shell $(PYTHON) -c 'import os; print(min((os.cpu_count() or 1) + 2, 8))'))
# How long each decoder is fuzzed.
SECONDS ?= 10
FUZZ_ARGS ?=
# How much chaos, and from which seed.
CHAOS_ARGS ?= --kills 1000
# `make lock LOCK_ARGS=--upgrade` moves every pin to its newest release.
LOCK_ARGS ?=

# --no-emit-*: a lock names packages and hashes, never where they were fetched.
COMPILE = .venv-tools/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --no-header --no-annotate --no-config $(LOCK_ARGS)

# As installed code is: compiled once, and not by each of the hundreds of processes that tests start.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv demo demo-covercrypt test test-issue test-crash fuzz chaos chaos-short check serve secrets rules openapi bench bench-wire bench-issue lock clean

help: ## list these commands
	@echo "keymailbox: make <command>"
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: $(VENV)/.ready ## make .venv from requirements/dev.lock (nothing to do when up to date)

demo: venv ## run the exchange between two tenants on this machine
	@$(BIN)/python -m demo.exchange

demo-covercrypt: venv .venv-covercrypt/.ready ## the exchange with Covercrypt keys (AGPL; in a venv of its own)
	@$(BIN)/python -m demo.exchange --covercrypt .venv-covercrypt/bin/python

test: venv ## run the tests; PYTEST_ARGS="-k name" chooses
	@$(BIN)/pytest --numprocesses=$(PROCESSES) --dist=loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-issue: venv ## try 20,000 random certificate requests; KMB_TEST_SEED=N repeats a run
	@KMB_TEST_REQUESTS=20000 $(BIN)/pytest -s tests/properties/test_certificates_random.py $(PYTEST_ARGS)

test-crash: venv ## have each statement of each use case fail, where `make test` has one in five
	@KMB_TEST_STATEMENTS=1 $(BIN)/pytest --numprocesses=2 --dist=loadfile tests/crash $(PYTEST_ARGS)

fuzz: venv ## fuzz every decoder; SECONDS=600 for longer, FUZZ_ARGS="--decoder deposit" chooses
	@$(BIN)/python -m fuzz --seconds $(SECONDS) $(FUZZ_ARGS)

check: venv ## ruff, format, mypy --strict, import-linter; all of them, so that one complaint hides no other
	@failed=; for gate in "ruff check ." "ruff format --check ." "mypy" "lint-imports"; do \
		echo "check: $$gate"; $(BIN)/$$gate || failed="$$failed '$$gate'"; done; \
	if [ -n "$$failed" ]; then echo "check: failed:$$failed" >&2; exit 1; fi

chaos: venv ## kill processes at random, 1,000 times, and look for what is lost; CHAOS_ARGS="--kills 100 --seed 7"
	@$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

chaos-short: venv ## the same in under five minutes, each kind of fault once; as CI does
	@$(BIN)/python -m tests.chaos --faults 17 --seconds 240

serve: venv ## run the whole service on loopback, with its database and broker
	@$(BIN)/python -m tests.kit.serve

secrets: ## write var/compose/*, the secrets that compose.yaml mounts; those that are there stay
	@set -eu; mkdir -p var; mkdir -p -m 700 var/compose; cd var/compose; \
	random() { $(PYTHON) -c 'import secrets; print(secrets.token_urlsafe(32), end="")'; }; \
	put() { if [ -e "$$1" ]; then echo "secrets: var/compose/$$1 stays"; else \
		printf "$$2" "$$3" > "$$1.new"; chmod 444 "$$1.new"; mv "$$1.new" "$$1"; echo "secrets: var/compose/$$1 written"; fi; }; \
	secret=$$(random); put passphrase '%s' "$$secret"; \
	secret=$$(random); put postgres_password '%s' "$$secret"; \
	put owner_database_url 'postgresql+psycopg://keymailbox:%s@postgres/keymailbox' "$$(cat postgres_password)"; \
	secret=$$(random); put api_database_url 'postgresql+psycopg://keymailbox_api:%s@postgres/keymailbox' "$$secret"; \
	secret=$$(random); put workers_database_url 'postgresql+psycopg://keymailbox_workers:%s@postgres/keymailbox' "$$secret"; \
	secret=$$(random); put rabbitmq.conf 'default_user = keymailbox\ndefault_pass = %s\n' "$$secret"; \
	put broker_url 'amqp://keymailbox:%s@rabbitmq//' "$$(sed -n 's/^default_pass = //p' rabbitmq.conf)"; \
	echo "secrets: the folder is yours alone; the files are world-readable inside it, for the containers' users"

rules: venv ## write the index at the end of docs/rules.md
	@$(BIN)/python -m tests.kit.rulebook

openapi: venv ## write schemas/openapi.json
	@$(BIN)/python -m pki.server.api.openapi

bench: venv ## measure; results go to bench/results
	@$(BIN)/python -m bench

bench-wire: venv ## measure the wire formats beside the bare cryptography
	@$(BIN)/python -m bench.wire

bench-issue: venv ## measure certificates a second, beside the bare signature, cfssl and django-ca
	@$(BIN)/python -m bench.issue

lock: .venv-tools/.ready ## renew requirements/*.lock; LOCK_ARGS=--upgrade for newer releases
	@$(COMPILE) --output-file requirements/runtime.lock pyproject.toml
	@$(COMPILE) --extra dev --output-file requirements/dev.lock pyproject.toml
	@$(COMPILE) --output-file requirements/build.lock requirements/build.in
	@$(COMPILE) --output-file requirements/covercrypt.lock requirements/covercrypt.in
	@$(COMPILE) --output-file requirements/tools.lock requirements/tools.in
	@if grep -nE '://|--(extra-)?index-url|--find-links' requirements/*.lock; then \
		echo "lock: a lock file names a host (above): it must not" >&2; exit 1; fi
	@echo "lock: requirements/{build,covercrypt,dev,runtime,tools}.lock are current"

clean: ## remove environments, caches and builds; var/ stays, for it holds state and secrets
	@rm -rf .venv .venv-covercrypt .venv-tools .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis \
		build dist .coverage
	@find bench demo fuzz pki schemas tests workers -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "clean: done; 'make venv' makes the environment again"

# A changed lock makes the environment anew, so that nothing unlocked stays in it; the stamp is a copy of the lock,
# so that one written again without a change costs nothing.
$(VENV)/.locked: requirements/dev.lock
	$(call environment,$(VENV),requirements/dev.lock)

# The build back end is in the lock, so that building the project fetches nothing unhashed.
$(VENV)/.ready: $(VENV)/.locked pyproject.toml
	@$(BIN)/python -m pip install $(PIP_FLAGS) --no-build-isolation --no-deps --editable .
	@touch $@
	@echo "venv: $(VENV) is ready"

# These have no second step: their stamp is the copy of the lock itself.
.venv-covercrypt/.ready: requirements/covercrypt.lock
	$(call environment,.venv-covercrypt,requirements/covercrypt.lock)

.venv-tools/.ready: requirements/tools.lock
	$(call environment,.venv-tools,requirements/tools.lock)

define environment
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo "venv: Python 3.11 or newer is needed, and '$(PYTHON)' is not. Next: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo "venv: '$(PYTHON)' cannot make virtual environments. Next: apt-get install python$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" >&2; exit 1; }
@if cmp -s $(2) $@; then touch $@; else set -e; \
	echo "venv: making $(1) from $(2)"; \
	$(PYTHON) -m venv --clear $(1); \
	$(1)/bin/python -m pip install $(PIP_FLAGS) --require-hashes --requirement $(2); \
	cp $(2) $@; fi
endef

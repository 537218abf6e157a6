# The few commands a person types. Each makes what it needs; a second `make setup` does no work.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BASE_PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3 2>/dev/null))
UV = $(shell command -v uv 2>/dev/null || echo .venv/bin/uv)

.PHONY: help setup lock

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: .venv/ready ## make .venv from the lock

# uv is installed into .venv where the machine has none. Bytecode is compiled once here: the pipeline
# starts some twenty processes, and compiling torch in each first one would cost more than the install.
.venv/ready: requirements.lock pyproject.toml
	@test -x .venv/bin/python || $(BASE_PYTHON) -m venv .venv
	@command -v uv >/dev/null 2>&1 || test -x .venv/bin/uv || .venv/bin/python -m pip install --quiet uv
	$(UV) pip install --python .venv/bin/python --compile-bytecode --requirement requirements.lock
	$(UV) pip install --python .venv/bin/python --no-deps --editable .
	@touch $@

lock: ## write the exact versions of everything, for all platforms
	$(UV) pip compile --universal --no-emit-index-url --no-annotate --python-version 3.11 \
		--extra dev --quiet pyproject.toml --output-file requirements.lock

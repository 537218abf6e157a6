# Commands for people. Each first makes what it needs; a second `make setup` does nothing.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BASE_PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3 2>/dev/null))
UV = $(shell command -v uv 2>/dev/null || echo .venv/bin/uv)
# Put the environment's programs first on PATH, as `source .venv/bin/activate` does.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
SMOKE = .runs/smoke-clone

# One file in one process, so that what its tests share is made once; files in the order of tests/conftest.py.
# Bytecode is kept even where the environment says otherwise: every test process and all that it starts would compile anew.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 pytest --dist loadfile --no-loadscope-reorder
CHAOS = --kills 50
FAULTS =

.PHONY: help setup repro report ui search test test-faults test-infra test-browser chaos gpu lint smoke dag rooms lock

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/ready ## create .venv from requirements.lock

# uv is installed into .venv if the machine has none. Bytecode is compiled here, once: otherwise the first of the
# pipeline's some thirty processes to import torch would compile it.
.venv/ready: requirements.lock pyproject.toml
	@test -x .venv/bin/python || $(BASE_PYTHON) -m venv .venv
	@command -v uv >/dev/null 2>&1 || test -x .venv/bin/uv || .venv/bin/python -m pip install --quiet uv
	$(UV) pip install --python .venv/bin/python --compile-bytecode --requirement requirements.lock
	$(UV) pip install --python .venv/bin/python --no-deps --editable .
	@touch $@

repro: setup ## run the stages that changed, then render the report
	python -m pipelines repro
	python -m pipelines report

report: setup ## render reports/index.html from the latest results
	python -m pipelines report

ui: setup ## compare runs in MLflow's web interface (http://127.0.0.1:5000)
	python -m pipelines ui

search: setup ## find people in the gallery of the last `make repro`, in a browser (http://127.0.0.1:8000)
	python -m pipelines serve

# Types are checked beside the tests, and these run in one process more than two cores, as some wait for processes that they started.
# What mypy says comes last.
test: setup ## lint, types and tests
	ruff check .
	ruff format --check .
	@mkdir -p .mypy_cache; mypy > .mypy_cache/printed 2>&1 & types=$$!; failed=0; \
	$(PYTEST) -n 3 -m "not faults and not heavy and not gpu and not infra and not browser" || failed=$$?; \
	wait $$types || failed=$$?; \
	cat .mypy_cache/printed; exit $$failed

test-faults: setup ## slow tests: stages that are killed, stopped, or lose disk or network, against undisturbed runs
	$(PYTEST) -n 2 -m "faults or heavy" $(FAULTS)

test-infra: setup ## as root: start Slurm and run infra/slurm, build the image and run a job in it; skips what is not installed
	OMP_NUM_THREADS=1 pytest -m infra -rs -s tests/infra

test-browser: setup ## drive the search page in Chromium (apt install chromium); without it one line says so
	OMP_NUM_THREADS=1 pytest -m browser -rs tests/pipelines/serving

chaos: setup ## kill random processes of the smoke pipeline 50 times, and compare with an undisturbed run
	python tests/faults/chaos.py $(CHAOS)

gpu: setup ## check and measure on a GPU of 80 GB or more, in at most 8 minutes: a table, and gpu.json
	python benchmarks/gpu.py --json gpu.json

lint: setup
	ruff check .
	ruff format --check .
	mypy

smoke: setup ## run all stages at smoke sizes, in a separate clone
	rm -rf $(SMOKE) && git clone --quiet --no-hardlinks . $(SMOKE)
	git ls-files -z --cached --others --exclude-standard | tar --null --ignore-failed-read -T - -cf - | tar -xf - -C $(SMOKE)
	cd $(SMOKE) && python -m pipelines preset smoke && python -m pipelines repro --force && python -m pipelines report && dvc status --quiet dvc.yaml

dag: setup ## write dvc.yaml from pipelines/graph.py
	python -m pipelines dag

rooms: setup ## draw the packages and their imports into docs/architecture.md
	python tests/support/rooms.py

lock: ## write requirements.lock: exact versions of all packages, for all platforms
	$(UV) pip compile --universal --no-emit-index-url --no-annotate --python-version 3.11 \
		--extra cluster --extra dev --quiet pyproject.toml --output-file requirements.lock

# Every target works on a fresh clone: it makes .venv and installs what it needs first.
# PYTHON=... chooses the interpreter (3.11 or newer).

VENV := .venv
BIN := $(VENV)/bin
CONFIG ?= experiments/quickstart.py
WORKDIR ?= runs/quickstart
WORKERS ?= 2
CODE := unicom_jax data_pipelines experiments tests setup.py
NEWEST = for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done
PYTHON ?= $(shell $(NEWEST))
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# The export is compared with the original if torch is installed.
VERIFY = $(shell $(BIN)/python -c 'import torch' 2>/dev/null && echo --verify)

.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow test-tpu wheel-test matrix lint format docs bench beam ray clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.runtime ## train, sample, evaluate, report and export a small model
	$(BIN)/unicom train --config=$(CONFIG) --workdir=$(WORKDIR)
	$(BIN)/unicom sample --checkpoint=$(WORKDIR) --sheet --out=$(WORKDIR)/samples.png \
		--prompt="a red circle" --prompt="a yellow triangle" --prompt="a blue ring" --prompt="a green cross"
	$(BIN)/unicom evaluate --workdir=$(WORKDIR)
	$(BIN)/unicom report --workdir=$(WORKDIR)
	$(BIN)/unicom export --checkpoint=$(WORKDIR) --to=pytorch --overwrite $(VERIFY) $(WORKDIR)/export

test: lint ## check style and run the tests (20 minutes of CPU time: about 11 on two cores)
	$(BIN)/python -m pytest -q -n $(WORKERS) -m "not slow and not tpu_aot" $(ARGS)

test-slow: $(VENV)/.test ## run the tests that take longer than 20 seconds each
	$(BIN)/python -m pytest -q -n $(WORKERS) -m "slow and not tpu_aot" $(ARGS)

# libtpu is installed beside the environment, not in it: else JAX looks for TPUs in every command.
test-tpu: $(VENV)/.test .libtpu/.done ## compile a small step and the kernels for TPUs without having one, with libtpu (a minute)
	PYTHONPATH=.libtpu $(BIN)/python -m pytest -q -n 0 -m tpu_aot $(ARGS)

wheel-test: $(VENV)/.runtime ## build the wheel, then train, sample, report and export with it alone in an empty folder
	BIN=$(BIN) .ci/wheel-test

matrix: ## try Python 3.11 to 3.13 with jax 0.10 to 0.12, each pair in its own environment (PAIRS=all: all seven)
	.ci/matrix

lint: $(VENV)/.test ## check style only
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)

format: $(VENV)/.test ## fix what the formatter and linter can fix
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

docs: $(VENV)/.runtime ## write the pages of docs/ that are generated
	$(BIN)/python -m unicom_jax.config.explain > docs/keys.md

bench: $(VENV)/.bench ## time our train step and its peers, in turns
	$(BIN)/python -m experiments.benchmarks $(ARGS)

beam: $(VENV)-beam/.ready ## test the packing of rows with Apache Beam, in its own environment
	$(VENV)-beam/bin/python -m pytest -q tests/data/preparation/test_beam.py $(ARGS)

ray: $(VENV)/.ray ## test sweeps on a Ray cluster that the tests start (installs Ray, 75 MB)
	$(BIN)/python -m pytest -q -n 0 tests/sweeps -k ray $(ARGS)

clean: ## remove caches and the virtual environment, but keep runs/
	rm -rf $(VENV) $(VENV)-beam .matrix .libtpu .jax_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find $(CODE) -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.python:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found; run make PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.runtime: $(VENV)/.python setup.py pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

# torch first and alone, so that no later package can require another build of it.
$(VENV)/.test: $(VENV)/.runtime
	$(PIP) torch==2.13.0
	$(PIP) --editable '.[test]'
	@touch $@

.libtpu/.done: $(VENV)/.test constraints.txt
	$(PIP) --target .libtpu --upgrade --no-deps libtpu
	@touch $@

$(VENV)/.bench: $(VENV)/.test
	$(PIP) --editable '.[bench]'
	@touch $@

$(VENV)/.ray: $(VENV)/.test
	$(PIP) --editable '.[ray]'
	@touch $@

# Beam conflicts with some of our pins, so constraints-beam.txt replaces some of them.
$(VENV)-beam/.ready: setup.py constraints.txt constraints-beam.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found; run make PYTHON=/path/to/it"; exit 1; }
	$(PYTHON) -m venv $(VENV)-beam
	grep -o '^[^#=]*==' constraints-beam.txt | grep -ivFf - constraints.txt \
		| cat - constraints-beam.txt > $(VENV)-beam/constraints.txt
	$(VENV)-beam/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(VENV)-beam/constraints.txt --editable '.[prepare]' pytest hypothesis beartype chex
	@touch $@

# `make run` and `make test` set up what they need in $(VENV) and do their job; `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
# cuda12 or cuda13: the build of DALI. CUDA 13 needs a driver from 580 up; both also run without a GPU.
DRIVER := $(shell nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 | cut -d . -f 1)
CUDA ?= $(if $(shell [ "$(DRIVER)" -ge 580 ] 2>/dev/null && echo yes),cuda13,cuda12)
# The torch on PyPI is built for CUDA 13. A GPU with an older driver takes one from PyTorch's own index.
TORCH_INDEX ?= $(if $(DRIVER),$(if $(filter cuda12,$(CUDA)),--extra-index-url https://download.pytorch.org/whl/cu128))
BIN = $(VENV)/bin
INPUT ?=
OUTPUT ?=
THRESHOLD ?=
FLAGS ?=
JOBS ?= 2

.PHONY: help run test soak test-gpu lint bench bench-report bench-check clean
help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

run: $(VENV)/.run ## score a demo set, or: make run INPUT=... OUTPUT=... [THRESHOLD=0.5] [FLAGS='--preset high']
ifeq ($(strip $(INPUT)),)
	$(BIN)/dali-aesthetic demo $(FLAGS)
else
	$(BIN)/dali-aesthetic run --input '$(INPUT)' --output '$(OUTPUT)' \
		$(if $(THRESHOLD),--threshold $(THRESHOLD)) $(FLAGS)
endif

# By files: fixtures of a module are made once. A Ray beside other load loses its patience, so those come last.
test: lint ## linters, types, and every test that needs no GPU; JOBS=4 for more than two processes
	$(BIN)/pytest -m 'not gpu and not ray' -n $(JOBS) --dist loadfile
	$(BIN)/pytest -m 'not gpu and ray'

soak: $(VENV)/.dev ## an hour of faults: 100 kills, every step of a commit, 400,000 images of which 5% are bad
	DALI_AESTHETIC_KILLS=100 $(BIN)/pytest tests/faults tests/launch/test_ray.py --timeout 3600
	$(BIN)/python -m tests.faults.soak

test-gpu: $(VENV)/.dev ## the tests that need a CUDA GPU
	$(BIN)/pytest -m gpu

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.bench ## images per second of each stage on this machine, as JSON: make bench [FLAGS=--quick]
	$(BIN)/python -m benchmarks all $(FLAGS)

bench-report: $(VENV)/.bench ## tables, plots and the README's figures from the committed results
	$(BIN)/python -m benchmarks report

bench-check: $(VENV)/.bench ## fail where a ratio is over 10% below the committed one: make bench-check [FLAGS=--quick]
	$(BIN)/python -m benchmarks check $(FLAGS)

clean: ## remove the environment and the demo
	rm -rf $(VENV) demo

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "needs Python 3.11 or newer: make PYTHON=python3.12 ..."'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.run: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet $(TORCH_INDEX) --editable '.[$(CUDA),demo]'
	touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet $(TORCH_INDEX) --editable '.[$(CUDA),demo,dev]'
	touch $@ $(VENV)/.run

$(VENV)/.bench: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet $(TORCH_INDEX) --editable '.[$(CUDA),demo,dev,bench]'
	touch $@

# `make run` and `make test` first set up what they need in $(VENV); `make help` lists all targets.
PYTHON ?= python3
VENV ?= .venv
# The build of DALI, cuda12 or cuda13. CUDA 13 needs driver 580 or newer; both also run without a GPU. Unless CUDA is
# given, an environment keeps its build, because machines that share it may have different drivers.
DRIVER := $(shell nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 | cut -d . -f 1)
FITTING := $(if $(shell [ "$(DRIVER)" -ge 580 ] 2>/dev/null && echo yes),cuda13,cuda12)
CUDA ?= $(or $(firstword $(shell cat $(VENV)/.setup 2>/dev/null)),$(FITTING))
# The torch on PyPI is built for CUDA 13. With an older driver torch comes from PyTorch's own index. It is installed
# first and from that index alone, because pip would prefer the newer one on PyPI.
TORCH_INDEX ?= $(if $(DRIVER),$(if $(filter cuda12,$(CUDA)),https://download.pytorch.org/whl/cu128))
BIN = $(VENV)/bin
INPUT ?=
OUTPUT ?=
THRESHOLD ?=
FLAGS ?=
JOBS ?= 2
comma := ,
# Paths are passed through the environment, so that neither make nor the shell expands a quote or a dollar in them.
export RUN_INPUT := $(value INPUT)
export RUN_OUTPUT := $(value OUTPUT)

.PHONY: help run test soak test-gpu lint docs bench bench-report bench-check clean always
help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

ifeq ($(strip $(value INPUT)),)
ifneq ($(strip $(value OUTPUT)$(value THRESHOLD)),)
# An error before anything is installed; the demo would ignore both variables.
$(if $(filter run,$(MAKECMDGOALS)),$(error INPUT is missing: make run INPUT=... OUTPUT=... (the demo takes neither OUTPUT nor THRESHOLD)))
endif
endif

run: $(VENV)/.run ## score a demo set, or: make run INPUT=... OUTPUT=... [THRESHOLD=0.5] [FLAGS='--preset high']
ifeq ($(strip $(value INPUT)),)
	$(BIN)/python -m dali_aesthetic demo $(FLAGS)
else
	$(BIN)/python -m dali_aesthetic run --input "$$RUN_INPUT" --output "$$RUN_OUTPUT" \
		$(if $(THRESHOLD),--threshold $(THRESHOLD)) $(FLAGS)
endif

# Tests are distributed by file, so that a module's fixtures are made once. Ray times out beside other load, so its tests
# run last and alone.
test: lint ## linters, types and every test that needs no GPU; JOBS=4 for more than two processes
	$(BIN)/python -m pytest -m 'not gpu and not ray' -n $(JOBS) --dist loadfile
	$(BIN)/python -m pytest -m 'not gpu and ray'

soak: $(VENV)/.dev ## an hour of faults: 100 kills, every step of a commit, 400,000 images of which 5% are bad
	DALI_AESTHETIC_KILLS=100 $(BIN)/python -m pytest tests/faults tests/launch/test_ray.py --timeout 3600
	$(BIN)/python -m tests.faults.soak

test-gpu: $(VENV)/.dev ## the tests that need a CUDA GPU
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/.dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

docs: $(VENV)/.dev ## the documentation as a site, in site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

bench: $(VENV)/.bench ## images per second of each stage on this machine, as JSON: make bench [FLAGS=--quick]
	$(BIN)/python -m benchmarks all $(FLAGS)

bench-report: $(VENV)/.bench ## update tables, plots and the README's figures from the committed results
	$(BIN)/python -m benchmarks report

bench-check: $(VENV)/.bench ## fail if a ratio is over 10% below the committed one: make bench-check [FLAGS=--quick]
	$(BIN)/python -m benchmarks check $(FLAGS)

clean: ## remove the environment, the demo and the site
	rm -rf $(VENV) demo site

# Records the environment's CUDA and folder. It is written once pip works, and again if either changes, which reinstalls
# everything that depends on it: the editable install names the folder.
$(VENV)/.setup: always
	@$(BIN)/python -c '' 2>/dev/null && [ "$$(cat $@ 2>/dev/null)" = "$(CUDA) $$(pwd -P)" ] || { $(make_pip) && \
		echo "$(CUDA) $$(pwd -P)" > $@; }

NEEDS = needs Python 3.11 or newer: make PYTHON=python3.12 ...
# An environment with pip is kept. One without was interrupted, or its Python is gone; it is created again.
define make_pip
{ case "$(CUDA)" in cuda12|cuda13) ;; *) echo 'CUDA=$(CUDA) is neither cuda12 nor cuda13' >&2; exit 2;; esac; \
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null 2>&1 || { \
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "$(NEEDS)"' && \
	$(PYTHON) -m venv $(if $(wildcard $(VENV)/pyvenv.cfg),--clear) $(VENV) && \
	$(BIN)/python -m pip install --quiet --upgrade pip; }; }
endef

# The builds of DALI and of its decoders own the same files, so both are uninstalled before one is installed.
OTHER = $(if $(filter cuda13,$(CUDA)),nvidia-dali-cuda120,nvidia-dali-cuda130)
SHARED = $(foreach name,nvimgcodec nvjpeg2k nvtiff libnvcomp,nvidia-$(name)-cu12 nvidia-$(name)-cu13)
define install
	@! $(BIN)/python -m pip show -qq $(OTHER) 2>/dev/null || \
		$(BIN)/python -m pip uninstall --yes -qq nvidia-dali-cuda120 nvidia-dali-cuda130 $(SHARED)
	$(if $(TORCH_INDEX),@$(BIN)/python -m pip show torch 2>/dev/null | \
		grep -q '^Version:.*+$(notdir $(TORCH_INDEX))$$' || { \
		$(BIN)/python -m pip uninstall --yes -qq torch torchvision && \
		$(BIN)/python -m pip install --quiet --index-url $(TORCH_INDEX) torch torchvision; })
	$(BIN)/python -m pip install --quiet --editable '.[$(CUDA),$(1)]'
endef

$(VENV)/.run: pyproject.toml $(VENV)/.setup
	$(call install,demo)
	touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.setup
	$(call install,demo$(comma)dev)
	touch $@ $(VENV)/.run

$(VENV)/.bench: $(VENV)/.dev
	$(call install,demo$(comma)dev$(comma)bench)
	touch $@

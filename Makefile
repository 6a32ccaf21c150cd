# Everything runs in .venv, which the first target that needs it fills: `make demo` and `make test` want
# nothing but Python 3.11 to 3.13, pip and make. `make` alone lists the targets.

TORCH  := 2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --no-input
SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(or $(shell for python in python3 python3.13 python3.12 python3.11 python; do \
	$$python -c '$(SUPPORTED)' 2>/dev/null && echo $$python && break; done),python3)

# One stamp for each step of the set-up, so that only what has changed is installed again.
TORCH_STAMP   := $(VENV)/.torch-$(TORCH)
LOCK_STAMP    := $(VENV)/.locked
PROJECT_STAMP := $(VENV)/.project

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install demo test check lint types format browser lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(PROJECT_STAMP) ## create .venv and install the pinned dependencies and tunestack

demo: install ## compare methods on the embedded example; the report lands in runs/demo
	@echo "Comparing every candidate of recipes/demo.yaml; this takes a few minutes."
	@HF_HUB_OFFLINE=1 $(BIN)/tunestack compare recipes/demo.yaml
	@echo "The report lies in runs/demo/report.html: open it in a browser."

check: lint types test ## ruff, mypy and pytest

# A process a core with one thread each: the tests' models are too small for more.
test: install browser ## pytest; choose tests with ARGS="-k stack"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

format: install ## put the code in ruff's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The tests of the report want a browser and are skipped, saying so, where there is none.
browser:
	@if ! command -v chromium >/dev/null && command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] \
	    && grep -qs '^ID=debian' /etc/os-release; then \
	  echo "Installing Debian's chromium for the tests of the report."; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	      apt-get install -qq -y --no-install-recommends chromium; } </dev/null >/dev/null 2>&1 \
	    || echo "It could not be installed: the tests that need a browser will be skipped."; \
	fi

# Pins that still fit are kept; remove requirements.lock first to take the newest of everything. hatchling
# and editables are what builds the project.
lock: | $(BIN)/python ## bring requirements.lock in line with pyproject.toml
	$(PIP) install --quiet uv
	printf 'torch==$(TORCH)\nhatchling\neditables\n' | $(BIN)/uv pip compile pyproject.toml - \
	  --universal --python-version 3.11 --fork-strategy fewest --extra demo --extra dev \
	  --no-emit-package torch --custom-compile-command "make lock" --quiet --output-file requirements.lock

clean: ## remove .venv and the tools' caches (runs/ stays)
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist

# Some systems ship Python's venv without ensurepip; there pip itself puts pip into the environment.
$(BIN)/python:
	@$(PYTHON) -c '$(SUPPORTED)' || { \
	  echo "tunestack needs Python 3.11, 3.12 or 3.13; \"$(PYTHON)\" is $$($(PYTHON) --version 2>&1)."; \
	  echo "Install one of them, or say where it is: make PYTHON=/path/to/python3.12 ..."; exit 1; } >&2
	@echo "Creating $(VENV) with $$($(PYTHON) --version)."
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 \
	  || { $(PYTHON) -m venv --clear --without-pip $(VENV) \
	       && $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; } \
	  || { rm -rf $(VENV); exit 1; }

# torch comes first and on its own: whatever else is installed then has to live with this build of it.
$(TORCH_STAMP): | $(BIN)/python
	@echo "Installing torch $(TORCH). This is the large one; with its accelerator libraries it can take minutes."
	@$(PIP) install torch==$(TORCH)
	@touch $@

$(LOCK_STAMP): requirements.lock $(TORCH_STAMP)
	@echo "Installing the pinned dependencies; about a minute."
	@$(PIP) install --quiet -r requirements.lock
	@touch $@

# The build backend is pinned too, so the project is built with it and not with a newer one.
$(PROJECT_STAMP): pyproject.toml $(LOCK_STAMP)
	@echo "Installing tunestack itself."
	@$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@touch $@

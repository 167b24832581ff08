# `make demo` and `make test` need only Python >= 3.11 (with venv and pip) and a package index. Both make .venv with the
# exact versions in requirements/. A stamp named after the content of those files tells that it is done, so that a second
# run installs nothing.

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

# At most 8 threads: more make these small networks slower. nproc knows how many cores this process may use.
export OMP_NUM_THREADS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$(( n < 8 ? n : 8 )))
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export ORT_DISABLE_TELEMETRY := 1

key = $(firstword $(shell cat $(1) | cksum))
BASE := $(VENV)/.base-$(call key,requirements/base.txt)
TEST := $(VENV)/.test-$(call key,requirements/base.txt requirements/test.txt)
PACKAGE := $(VENV)/.package-$(call key,pyproject.toml)

.DEFAULT_GOAL := help
.PHONY: help demo test lint format types bench clean distclean

help:  ## Show this list
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 18

demo: $(BASE) $(PACKAGE)  ## Segment the sample photos with the bundled model; pictures go to out/
	@$(RUN) examples/demo.py

test: lint types  ## Check style and types, run all tests
	@$(RUN) -m pytest

lint: $(TEST) $(PACKAGE)  ## Check style (ruff)
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .

types: $(TEST) $(PACKAGE)  ## Check types (mypy --strict)
	@$(RUN) -m mypy

format: $(TEST)  ## Bring all code into one style
	@$(RUN) -m ruff check --fix .
	@$(RUN) -m ruff format .

bench: $(TEST) $(PACKAGE)  ## Measure speed and memory (minutes; keep the machine otherwise idle)
	@$(RUN) -m benchmarks

clean:  ## Remove pictures, caches and built files
	rm -rf out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## Remove .venv as well
	rm -rf $(VENV)

# venv without ensurepip (Debian's bare python3) leaves a python and no pip: pip is what tells a finished one.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed: make PYTHON=python3.11 ...' >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo 'On Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }

$(BASE): | $(VENV)/bin/pip
	@echo 'Installing the pinned libraries into $(VENV) (once, takes a minute or two) ...'
	@$(RUN) -m pip install --quiet -r requirements/base.txt
	@rm -f $(VENV)/.base-* && touch $@

$(TEST): | $(BASE)
	@echo 'Installing the pinned test tools into $(VENV) (once, takes a minute or two) ...'
	@$(RUN) -m pip install --quiet -r requirements/test.txt
	@rm -f $(VENV)/.test-* && touch $@

$(PACKAGE): | $(BASE)
	@$(RUN) -m pip install --quiet --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.package-* && touch $@

# The hosts: openmmlab, oldest or onedl, each in an environment of its own.
STACK ?= openmmlab
VENV := .venv$(patsubst %,-%,$(filter-out openmmlab,$(STACK)))
# The environment's Python, once there is one; make install PYTHON=python3.11 chooses it.
PYTHON ?= $(shell test -x $(VENV)/bin/python && echo $(VENV)/bin/python || echo python3)
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install quickstart test lint docs format clean

help:  ## Show the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install:  ## Make the environment; PYTHON=python3.11 and STACK=onedl choose
	@$(PYTHON) tools/install.py --stack $(STACK)

quickstart: install  ## Train and evaluate the three tasks on handwritten digits
	$(BIN)/python tools/quickstart.py

# Threads only slow down tensors as small as those of the tests.
test: export OMP_NUM_THREADS ?= 1
test: install  ## Run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: install  ## Check style, docstrings, import directions, spelling, types and tables
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pydoclint --quiet mmsparse tools
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/python docs/measurements.py --check
	$(BIN)/python tools/zoo_tables.py --check

docs: install  ## Build the site into build/docs and check the links between its pages
	$(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning --keep-going \
	  --conf-dir docs . build/docs
	@echo build/docs/index.html

format: install  ## Format the code and mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove caches and build products; .venv, data and work_dirs stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -r {} +

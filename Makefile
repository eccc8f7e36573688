# The stack: openmmlab, oldest or onedl, or a row of tools/install/rows.py, each with a
# separate environment.
STACK ?= openmmlab
VENV := .venv$(patsubst %,-%,$(filter-out openmmlab,$(STACK)))
# The environment's Python, or the newest on the PATH that the stack runs with, best one
# with venv and headers; make install PYTHON=python3.11 chooses another.
VERSIONS := $(if $(filter oldest,$(STACK)),10,$(if $(filter onedl,$(STACK)),12 11 10,13 12 11 10))
COMPLETE := import ensurepip, sysconfig; open(sysconfig.get_path('include') + '/Python.h')
PYTHON ?= $(shell works() { "$$@" 2>/dev/null && echo $$1 && exit; }; works $(VENV)/bin/python -c ''; \
  for probe in "$(COMPLETE)" ''; do for version in $(VERSIONS); do \
  works python3.$$version -c "$$probe"; done; done; echo python3)
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help install frameworks quickstart bench test matrix lint docs format clean

# Prints the first line of every command's docstring or comment.
define COMMANDS
import pathlib, re
for path in sorted(pathlib.Path('tools').glob('[a-z]*.*')):
    first = re.search(r'^(?:"""|# )(.+?)[.:]?(?:""")?$$', path.read_text(), re.M)
    print(f'tools/{path.name:24}{first[1]}')
endef
export COMMANDS

help:  ## List the targets and the commands
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 30
	@echo
	@$(PYTHON) -c "$$COMMANDS"

install:  ## Create the environment; options: PYTHON=python3.11, STACK=onedl
	@$(PYTHON) tools/install.py --stack $(STACK)

frameworks: install  ## Create .venv-frameworks: transformers, ultralytics and others
	@$(PYTHON) tools/install.py --stack frameworks

quickstart: install  ## Train and evaluate three tasks on handwritten digits
	$(BIN)/python tools/quickstart.py

bench: install  ## Compare the time and memory of the attention operators
	$(BIN)/python tools/benchmark.py ops

# Threads slow down tensors as small as those of the tests.
test: export OMP_NUM_THREADS ?= 1
# Every command of the tests would compile mmsparse again.
test: export PYTHONDONTWRITEBYTECODE :=
# In the default order, long files with a single test come last.
test: $(if $(filter openmmlab,$(STACK)),frameworks,install)  ## Run the tests
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile \
	  --no-loadscope-reorder $(OPTIONS)

matrix:  ## Run the core tests with several Pythons and torch; option: ROWS=oldest
	python3 tools/matrix.py $(ROWS)

lint: install  ## Check style, docstrings, imports, spelling, types, tables and words
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pydoclint --quiet mmsparse tools
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/python docs/measurements.py --check
	$(BIN)/python tools/zoo_tables.py --check
	$(BIN)/python tools/weights_manifest.py --check
	$(BIN)/python .ci/check_words.py

docs: install  ## Build the site into build/docs and check the links between its pages
	$(BIN)/python -m sphinx --quiet --fresh-env --fail-on-warning --keep-going \
	  --conf-dir docs . build/docs
	@echo build/docs/index.html

format: install  ## Format the code and apply ruff's fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove caches and build files; keep .venv, data and work_dirs
	rm -rf build dist *.egg-info .coverage* .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -r {} +

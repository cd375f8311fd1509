# Everything a person or CI runs. Needs only Python 3.11 or newer and make; the rest is set up in $(VENV).
#   make demo [ENGINE=numpyro]     make test     make help

PYTHON ?= python3
VENV   ?= .venv
ENGINE ?= pyro
JOBS   ?= 2
RUN    ?= runs/demo-$(ENGINE)

BIN       := $(VENV)/bin
PIP       := $(BIN)/python -m pip --disable-pip-version-check -qq
GUIDEBOOK := $(BIN)/guidebook
ROOMS     := models guides engines inference data recipes
TYPES     := build/types/guidebook
EMPTY     := build/empty

# One thread for every test process: with $(JOBS) processes more would only fight for the cores. Compilers allocate in
# small pieces, which the C library keeps in place of returning them: a tenth off the time of JAX.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg \
	GLIBC_TUNABLES=glibc.malloc.tcache_count=1000:glibc.malloc.trim_threshold=268435456:glibc.malloc.top_pad=16777216

.DELETE_ON_ERROR:
.PHONY: help setup demo test lint format types house wheel isolation notebooks bench tables apart check clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):[^#]*## */\1\t/' | awk -F'\t' '{printf "  make %-10s %s\n", $$1, $$2}'

# --- environment: a stamp for each state, so that later calls cost nothing ---

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"Guidebook needs Python 3.11 or newer, not {sys.version.split()[0]}: make PYTHON=/path/to/python3.12")'
	@echo "Setting up $(VENV): once, a few minutes."
	@$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing Guidebook with both engines."
	@$(PIP) install -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@echo "Installing the development tools."
	@$(PIP) install -c constraints.txt -e '.[all,dev]'
	@touch $@

setup: $(VENV)/installed-dev  ## environment with both engines and the development tools
	@:

# --- use ---

demo: $(VENV)/installed  ## fits the quickstart recipe and shows the results; ENGINE=numpyro for the other engine
	@$(GUIDEBOOK) fit quickstart --engine $(ENGINE) --out $(RUN) --resume
	@$(GUIDEBOOK) evaluate $(RUN)
	@$(GUIDEBOOK) reconstruct $(RUN)
	@$(GUIDEBOOK) interpolate $(RUN)
	@$(GUIDEBOOK) sample $(RUN)
	@$(GUIDEBOOK) diagnose $(RUN)
	@echo "The run is $(RUN): pictures in $(RUN)/figures, the report is $(RUN)/report.html"

# --- checks: CI and pre-commit call these same targets ---

test: $(VENV)/installed-dev  ## all tests, the slow ones included; ARGS='-k name' for some
	@$(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: $(VENV)/installed-dev  ## ruff: rules and format
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check

format: $(VENV)/installed-dev  ## mends what ruff can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

types: $(VENV)/installed-dev  ## pyright
	@mkdir -p $(TYPES)
	@for room in $(ROOMS); do ln -sfn ../../../$$room $(TYPES)/$$room; done
	@$(BIN)/pyright --pythonpath $(BIN)/python

house: $(VENV)/installed-dev  ## who imports whom, mirrored rooms, what the packaging claims
	@$(BIN)/python -m pytest -q tests/house

wheel: $(VENV)/installed-dev  ## builds the wheel and tries it in an environment without any engine
	@rm -rf dist
	@mkdir -p build
	@$(BIN)/python -m build --outdir dist >build/wheel.log 2>&1 || { cat build/wheel.log; exit 1; }
	@$(BIN)/python -m venv --clear $(EMPTY)
	@$(EMPTY)/bin/python -m pip --disable-pip-version-check -qq install -c constraints.txt dist/*.whl
	@cd $(EMPTY) && bin/python -I $(CURDIR)/tests/house/without_engines.py

isolation: isolation-pyro isolation-numpyro  ## each engine does its work while the other cannot be imported

isolation-%: $(VENV)/installed-dev
	@$(BIN)/python tests/house/isolation.py $*

notebooks: $(addsuffix .run,$(wildcard notebooks/*.ipynb))  ## runs every notebook from top to bottom

%.ipynb.run: $(VENV)/installed-dev
	@echo $*
	@MPLBACKEND=Agg $(BIN)/jupyter-execute --timeout=900 $*.ipynb

bench: $(VENV)/installed-dev  ## speed beside hand-written loops, into benchmarks/results, then the tables
	@$(BIN)/python -m benchmarks.speed
	@$(BIN)/python benchmarks/tables.py

tables: $(VENV)/installed-dev  ## README and docs show what benchmarks/results holds (benchmarks/tables.py renews them)
	@$(BIN)/python benchmarks/tables.py --check

apart: types house wheel isolation notebooks tables  ## what CI checks beside lint and tests, one process each: take -j2

check: lint apart test  ## all that CI checks

clean:  ## removes builds and caches; keeps $(VENV) and runs
	@rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find $(ROOMS) tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

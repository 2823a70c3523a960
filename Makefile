# make train       train on the embedded default data set     (make train ARGS="--config configs/X.yaml")
# make test        run the tests                              (make test ARGS="tests/report -x")
# make lint        ruff and mypy
# make site        build the documentation as a site in build/site
# make minkowski   build MinkowskiEngine, the optional second engine, into the environment
# make clean       remove what the commands above made
#
# Each makes a virtual environment in .venv first and re-uses it until setup.cfg or constraints.txt changes. Settings:
#   PYTHON=python3.12                              the interpreter of the virtual environment
#   VENV=/tmp/venv                                 another place for it
#   WORKERS=1                                      processes that the tests run in; one for each core otherwise
#   TORCH="torch==2.6.0"                           another torch build, with any options pip takes; constraints.txt is then not applied

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
ARGS ?=
WORKERS ?= auto

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed-$(shell printf '%s' '$(TORCH)' | cksum | cut -d ' ' -f 1)
CONSTRAINTS := $(if $(filter torch==2.13.0,$(TORCH)),-c constraints.txt)
INTERPRETER := $(VENV)/.installed-interpreter
SUPPORTED := import sys; sys.exit(sys.version_info < (3, 10))

.PHONY: train test lint site minkowski clean
.DEFAULT_GOAL := test

train: $(INSTALLED)
	$(BIN)/python tools/train.py $(ARGS)

test: $(INSTALLED) $(INTERPRETER)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

site: $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check $(CONSTRAINTS) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

minkowski: $(INSTALLED)
	PYTHON=$(BIN)/python docker/install_minkowski.sh

clean:
	rm -rf $(VENV) build dist ./*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch goes first and alone: the pin picks the build that this machine's package index offers, and the package's own
# "torch>=2.4" is then already met.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found: install Python 3.10 or newer, or set PYTHON" >&2; exit 1; }
	@$(PYTHON) -c '$(SUPPORTED)' || { \
	    echo "error: $$($(PYTHON) --version) is too old: Python 3.10 or newer is needed, e.g. make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    if ! command -v apt-get >/dev/null; then :; \
	    elif [ "$$(id -u)" = 0 ]; then apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y python3-venv; \
	    elif sudo -n true 2>/dev/null; then \
	        sudo -n apt-get update && sudo -n env DEBIAN_FRONTEND=noninteractive apt-get install -y python3-venv; \
	    fi; \
	    $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	        echo "error: $(PYTHON) cannot make virtual environments: install python3-venv (Debian: sudo apt-get install python3-venv)" >&2; exit 1; }; }
	@$(BIN)/python -c 'import pip; $(SUPPORTED)' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(CONSTRAINTS) $(TORCH)
	$(BIN)/python -m pip install --disable-pip-version-check $(CONSTRAINTS) --editable '.[las,dev]'
	@touch $@

# A few hundred megabytes that only tests need: Triton, in whose interpreter the kernels for GPUs are tested.
$(INTERPRETER): $(INSTALLED)
	$(BIN)/python -m pip install --disable-pip-version-check $(CONSTRAINTS) --editable '.[interpreter]'
	@touch $@

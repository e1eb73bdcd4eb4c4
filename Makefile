# Run `make` or `make help` for what there is. Needs Python 3.11 or newer; all else goes into .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.installed
METHOD ?= notmad
BENCH  ?= simulated

# Matrices are small: a second thread gains less than it costs when other work runs beside.
export OMP_NUM_THREADS ?= 1
export MPLBACKEND ?= Agg

.DEFAULT_GOAL := help
.PHONY: help install demo test lint types pytest bench bench-list clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

install: $(READY)  ## make .venv with the package (editable) and everything that the tests need

$(READY): pyproject.toml constraints.txt
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "embergraph needs Python 3.11 or newer")'
	"$(PYTHON)" -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $(READY)

demo: $(READY)  ## fit Sachs et al. (about 2 minutes): report, comparison, posterior.nc and pictures in out/
	$(PY) examples/sachs.py --out out

test: lint types pytest  ## everything that must pass: lint, types and tests

lint: $(READY)  ## ruff: rules and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

# mypy does not follow an editable install with mapped folders, so it reads an installed copy.
types: $(READY)  ## mypy on the package
	rm -rf .typecheck build
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --target .typecheck .
	rm -rf build
	cd .typecheck && ../$(PY) -m mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache -p embergraph

pytest: $(READY)  ## the tests alone, a process a core
	$(PY) -m pytest -n auto --dist loadfile

bench: $(READY)  ## a table of benchmarks/README.md (long); choose by METHOD=notmad BENCH="sachs --archetypes 2-9"
	$(PY) benchmarks/$(METHOD).py $(BENCH)

bench-list: $(READY)  ## every benchmark, what it shows and what it takes
	@for front in notmad med_magma environment_vae calibration; do $(PY) benchmarks/$$front.py --help; echo; done

clean:  ## remove .venv, outputs and caches
	rm -rf $(VENV) .typecheck out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

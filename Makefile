# Spatial Probes. `make` alone says what each target does; every target works from a clean checkout and is safe to repeat.

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(shell command -v $(p) 2>/dev/null)))
VENV   ?= .venv
SUITE  ?= lab
ONLY   ?=
JOBS   ?=
PROFILE ?= local

PY    := $(VENV)/bin/python
PROBES := $(PY) -m spatialprobes
STAMP := $(VENV)/.install-stamp

# An environment's own kernel comes before one of the same name in the user's home.
export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: help install figures redraw test check lab bench jupyter clean sync lock

help:  ## say what each target does
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  Options of figures: SUITE=lab (or full: real checkpoints, needs a GPU and downloads)  ONLY='swap-*'  JOBS=2 (runs at a time; the threads are divided among them)  PROFILE=local|slurm"
	@echo "  Python: 3.11 to 3.13; choose one with PYTHON=/path/to/python. Now: $(or $(PYTHON),none found)"
	@echo "  torch: PyPI's build for Linux brings CUDA along. For another build (CPU alone, another CUDA), make .venv first and install"
	@echo "         torch there with the command that pytorch.org gives for your machine, at the version of requirements.lock; then"
	@echo "         make install keeps it:  python3.11 -m venv .venv && .venv/bin/pip install ... && make install"

install: $(STAMP)  ## make .venv and install the pinned packages and this library into it

$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "No Python found: install Python 3.11, 3.12 or 3.13, or pass PYTHON=/path/to/python"; exit 2; }
	@test -x $(PY) || "$(PYTHON)" -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else \
	  f"Python {v[0]}.{v[1]} at {sys.executable}: need 3.11, 3.12 or 3.13; pass PYTHON=/path/to/python")'
	@test -x $(PY) || { echo "making $(VENV) with $(PYTHON)"; "$(PYTHON)" -m venv $(VENV); }
	@echo "installing the $$(grep -c == requirements.lock) pinned packages of requirements.lock into $(VENV); the first time takes minutes"
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(PY) -c 'from jupyter_client.kernelspec import get_kernel_spec; get_kernel_spec("python3")'
	@touch $(STAMP)

figures: install  ## execute what is due of papermill_runs.yaml and build figures/index.html
	@$(PY) tests/house.py gpu
	@$(PROBES) figures --suite '$(SUITE)' --only '$(ONLY)' $(if $(JOBS),--jobs '$(JOBS)') --profile '$(PROFILE)'

redraw: install  ## draw all figures again from the saved tables, without torch or a model
	@$(PROBES) redraw

test: install  ## run the tests, and the notebooks against their stored verdicts
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadscope --nbval-lax --nbval-current-env tests notebooks

check: install  ## ruff, import contract, lock = environment.yaml, twins in sync, pip check
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/lint-imports --no-cache
	@$(PY) tests/house.py check
	@$(PY) -m pip check

lab: install  ## train the lab's models again, from nothing, into data/training/zoo (resumes after a kill, uses a GPU when there is one)
	@$(PROBES) lab --out data/training/zoo

bench: install  ## measure: benchmarks/*.py, each prints its table and writes benchmarks/results/<name>.json
	@for script in $(filter-out benchmarks/common.py benchmarks/random_models.py,$(sort $(wildcard benchmarks/*.py))); do \
	  echo "== $$script"; HF_HUB_OFFLINE=1 $(PY) "$$script" || exit 1; done

jupyter: install  ## open JupyterLab on the notebooks
	@$(VENV)/bin/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

clean:  ## remove what runs, figures and tests wrote; keep .venv, the weights and figures/readme
	rm -rf data/runs .snakemake .pytest_cache .hypothesis .ruff_cache .import_linter_cache build dist
	find figures -mindepth 1 -maxdepth 1 ! -name readme -exec rm -rf {} +
	find lib tests benchmarks notebooks -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf

sync: install  ## bring notebooks and their twins in notebooks/scripts up to date, the newer wins
	@$(VENV)/bin/jupytext --sync $(wildcard notebooks/*.ipynb notebooks/scripts/*.py)

lock: install  ## write the present environment's versions to requirements.lock and environment.yaml
	@$(PY) tests/house.py lock
	@touch $(STAMP)

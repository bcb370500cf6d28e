# Every target works on a fresh machine with Python >= 3.11 and pip: it makes .venv once and then runs.
#   make demo     train a tiny cascade, sample the shipped one, write out/demo/report.html
#   make test     the whole test suite
#   make torture  kill commands at random moments and compare what they end with; KILLS=50 of every case
#   make fuzz     try every reader of files with hostile ones; FUZZ_INPUTS=10000 for each
#   make test-ui  the tests of the page (cdm ui), its path in a browser among them; finds or installs a Chromium
#   make mutation change one thing at a time in the mathematics: does a test notice? Half an hour on one core
#   make coverage the whole test suite, and which lines and branches of the package it does not reach
#   make audit    look the pinned packages up among known vulnerabilities (asks a service on the network)
#   make lock     write requirements.lock, the hashes of the pinned packages, from constraints.txt
#   make lint     ruff and mypy
#   make format   let ruff rewrite the sources
#   make docs     build the documentation site into build/site, warnings are errors
#   make docs-serve   show it on http://127.0.0.1:8000, rebuilt as you write
#   make clean    remove .venv, caches and out/

PYTHON  ?= python3
# Worker processes of the tests. Each runs torch on one thread, so this is also the number of busy cores.
WORKERS ?= 2
PYTEST_ARGS ?=
KILLS ?= 50
TORTURE_ARGS ?=
FUZZ_INPUTS ?= 10000
FUZZ_ARGS ?=
MUTATION_ARGS ?=

VENV_PYTHON := .venv/bin/python
# pip talks on a terminal, where somebody waits for a download, and is quiet elsewhere.
PIP_INSTALL := $(VENV_PYTHON) -m pip install --disable-pip-version-check --no-input --no-compile \
               $(if $(MAKE_TERMOUT),,--quiet) --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test torture fuzz lint format docs docs-serve test-ui clean

help:
	@sed -n 's/^#   //p' Makefile

demo: .venv/.core
	$(VENV_PYTHON) -m cascaded_diffusion demo

test: .venv/.dev
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

torture: .venv/.dev
	$(VENV_PYTHON) tools/torture.py --kills $(KILLS) $(TORTURE_ARGS)

fuzz: .venv/.dev
	PYTHONPATH=tools OMP_NUM_THREADS=1 $(VENV_PYTHON) -m fuzz --inputs $(FUZZ_INPUTS) $(FUZZ_ARGS)

test-ui: .venv/.dev
	@chromium=$$(tools/find_chromium.sh) && \
	  OMP_NUM_THREADS=1 CDM_CHROMIUM="$$chromium" $(VENV_PYTHON) -m pytest tests/ui tests/cli/test_ui.py $(PYTEST_ARGS)

.PHONY: mutation coverage audit lock

mutation: .venv/.dev
	OMP_NUM_THREADS=1 $(VENV_PYTHON) tools/mutation.py $(MUTATION_ARGS)

coverage: .venv/.dev
	rm -f .coverage .coverage.*
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m coverage run -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)
	$(VENV_PYTHON) -m coverage combine --quiet
	$(VENV_PYTHON) -m coverage report --fail-under=90 --skip-covered --show-missing

audit:
	@$(PYTHON) tools/audit.py

lock: .venv/.core
	$(VENV_PYTHON) tools/make_lock.py

lint: .venv/.dev
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m mypy

format: .venv/.dev
	$(VENV_PYTHON) -m ruff check --fix .
	$(VENV_PYTHON) -m ruff format .

# The variable silences a notice about the site generator's future, which is no warning of ours.
docs docs-serve: export NO_MKDOCS_2_WARNING = 1

docs: .venv/.dev
	$(VENV_PYTHON) -m mkdocs build --strict

docs-serve: .venv/.dev
	$(VENV_PYTHON) -m mkdocs serve --dev-addr 127.0.0.1:8000

clean:
	rm -rf .venv .venv-audit .coverage .coverage.* out build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests tools benchmarks -name __pycache__ -type d -exec rm -rf {} +

# A stamp tells that its dependencies are installed from the pins as they now stand. The build backend is pinned too,
# hence no build isolation, which would fetch whatever version is newest.
.venv/.core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "cascaded-diffusion needs Python >= 3.11; '$(PYTHON)' is $$($(PYTHON) --version 2>&1 || true)." \
	       "Name another one with: make PYTHON=python3.12" >&2; exit 2; }
	@$(VENV_PYTHON) -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	@echo "Installing the pinned dependencies into .venv (a minute or two, only this once)"
	@$(PIP_INSTALL) flit_core
	@$(PIP_INSTALL) --no-build-isolation --editable .
	@touch $@

.venv/.dev: .venv/.core
	@echo "Installing the development tools into .venv"
	@$(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@

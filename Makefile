# What a person types. Each target is a command or two that can be typed as well.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# A newer setup.cfg or constraints.txt means: install again.
RUNTIME := $(VENV)/installed-runtime
DEVELOPMENT := $(VENV)/installed-development
LOWEST := .venv-lowest
SLURM_PACKAGES := slurm-wlm munge iproute2
# another release for slurm-shell: 24.11 or 26.05
SLURM ?=
# One thread a process: the tests' processes share the cores, and threads that wait for cores spin.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
PARALLEL := -n 2 --dist loadfile

.DEFAULT_GOAL := help
PAGES ?= $(wildcard runs/*/*.html demo/run/*.html)

.PHONY: help demo pages test test-fast test-slow test-lowest lint docs audit bench gpu slurm chaos slurm-shell clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: $(RUNTIME) ## rasters to an exported encoder; DATA=<BigEarthNet root> takes real patches
	@PATH="$(CURDIR)/$(BIN):$$PATH" examples/demo.sh

test: lint slurm ## lint, types, layers and all tests; Slurm's packages come by apt where that is possible
	$(PYTEST) $(PARALLEL) -m "not slurm and not exhaustive" --cov --cov-report=
	$(PYTEST) -m "slurm and not exhaustive" --cov --cov-append --cov-report=term:skip-covered

test-fast: $(DEVELOPMENT) ## the tests that take seconds
	$(PYTEST) $(PARALLEL) -m "not slow and not slurm and not gpu and not exhaustive"

test-slow: $(DEVELOPMENT) slurm ## the tests that take minutes: flips in compressed shards, memory, chaos
	$(PYTEST) -m exhaustive

test-lowest: $(DEVELOPMENT) ## the fast tests with the oldest versions that setup.cfg allows; 6 GB
	$(PIP) install uv
	$(BIN)/uv venv --quiet --allow-existing $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST) --resolution lowest-direct -e ".[dev]"
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -W ignore::DeprecationWarning \
		-m "not slow and not slurm and not gpu and not exhaustive"

docs: $(DEVELOPMENT) ## the documentation as a site, in site/; opened from there it needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

audit: $(DEVELOPMENT) ## known weaknesses of the versions in constraints.txt; asks the package index
	$(PIP) install uv
	$(BIN)/uv tool run pip-audit --strict --no-deps --disable-pip -r constraints.txt

lint: $(DEVELOPMENT) ## ruff, mypy, import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(DEVELOPMENT) ## every claim of speed, with machine, versions and limit; names those that failed
	@failed=; for file in $(filter-out $(patsubst %,benchmarks/%.py,report plan interruptions scale gpu real),$(wildcard benchmarks/*.py)); do \
		echo "== $$file"; $(BIN)/python $$file || failed="$$failed $$file"; \
	done; [ -z "$$failed" ] || { echo "failed:$$failed"; exit 1; }

gpu: $(DEVELOPMENT) ## what one GPU proves in 25 minutes: its tests, views, loss, steps, saving
	@$(BIN)/python benchmarks/gpu.py

pages: ## screenshots of PAGES, those of runs/ and demo/ unless given, as a screen and a phone show them
	@for page in $(PAGES); do for width in 1200 500; do \
		chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=$$width,4000 \
			--screenshot=$${page%.html}-$$width.png "file://$$(realpath $$page)" 2>/dev/null && echo $${page%.html}-$$width.png; \
	done; done

slurm: ## Slurm's Debian packages, if they are missing and this is root on Debian
	@if command -v slurmctld >/dev/null && command -v munged >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
		apt-get -o DPkg::Lock::Timeout=600 install -yqq $(SLURM_PACKAGES); \
	else echo "no Slurm here: its tests will be skipped (needs: $(SLURM_PACKAGES))"; fi

chaos: $(DEVELOPMENT) slurm ## 30 random faults in a training on the test cluster; its weights must be as undisturbed
	@$(BIN)/python tests/slurm/chaos.py

slurm-shell: $(DEVELOPMENT) slurm ## a shell on a Slurm of four nodes inside this machine; SLURM=24.11 or 26.05 for a newer one
	@$(BIN)/python $(if $(SLURM),tests/slurm/releases.py $(SLURM) $(CURDIR)/$(BIN)/python) tests/slurm/cluster.py

clean: ## what demo, tests and tools leave; .venv stays
	rm -rf demo build dist site $(LOWEST) .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +

# Debian's python3 may come without ensurepip; then the pip beside it fills the environment.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) \
		&& $(PYTHON) -m pip --python $(BIN)/python install pip; }

$(RUNTIME): setup.cfg constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e ".[bigearthnet]"
	@$(BIN)/simclr-doctor --quiet
	@touch $@

$(DEVELOPMENT): setup.cfg constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e ".[dev]"
	@$(BIN)/simclr-doctor --quiet
	@touch $@ $(RUNTIME)

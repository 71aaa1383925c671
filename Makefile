# Two commands do everything on a fresh clone: `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: help demo test check lint types soundness reliability bench-lipsdp bench-local third-party docs compare reports notebooks wheel-test examples zoo clean

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
    command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One thread for each worker: several small problems at once are faster than one with many threads.
export OMP_NUM_THREADS ?= 1

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed (set PYTHON=...)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(READY)

demo: $(READY) ## install, audit a network of the zoo, write reports/demo/report.html
	$(BIN)/lipverify audit zoo:digits-cnn --analyzers product,lipsdp-fast,lipsdp --out reports/demo --force
	@echo "open reports/demo/report.html"

test: lint types $(READY) ## everything that must pass before a change lands
	$(BIN)/pytest -n auto --dist worksteal tests

check: test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

reliability: $(READY) ## runs that are killed, or whose disk refuses, at every operation; writes reports/reliability
	$(BIN)/python reports/reliability/faults.py

soundness: $(READY) ## every test with nothing left out (docs/testing.md), and the long searches for a wrong bound
	LIPVERIFY_SOUNDNESS=full $(BIN)/pytest -n auto --dist worksteal tests
	$(BIN)/python reports/soundness/build.py

bench-lipsdp: $(READY) ## LipSDP against cone solvers, half an hour; writes reports/bench-lipsdp
	$(BIN)/python benchmarks/lipsdp.py

bench-local: $(READY) ## bounds around digits against auto_LiRPA where it is importable; writes reports/bench-local
	$(BIN)/python benchmarks/local.py

third-party: $(READY) ## audit every network of the sibling folder shared/checkpoints, write reports/third_party
	$(BIN)/python reports/third_party/build.py

compare: $(READY) ## six networks of the zoo side by side; writes reports/compare and the picture of the README
	$(BIN)/lipverify compare zoo:digits-relu-mlp zoo:digits-tanh-mlp zoo:digits-groupsort zoo:digits-residual-mlp \
	    zoo:digits-weight-norm zoo:cancer-gelu --analyzers product,lipsdp-fast,lipsdp --jobs 2 --cache build/compare \
	    --out reports/compare --force
	$(BIN)/python docs/picture.py

docs: $(READY) ## build the site into build/site; generated tables are written again
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open build/site/index.html"

# The numbers of these reports depend on no clock: searches are counted. Benchmarks, radii and compare are races against a
# clock and have targets of their own.
reports: $(READY) ## make the reports on zoo, pitfalls, operators, soundness and third-party networks again
	$(BIN)/python reports/zoo/build.py
	$(BIN)/python reports/pitfalls/build.py
	$(BIN)/python reports/operators/build.py
	$(BIN)/python reports/soundness/build.py --networks 0 --models 0 --readers 0
	@if test -d ../shared/checkpoints; then $(BIN)/python reports/third_party/build.py; \
	else echo "reports/third_party left as it is: shared/checkpoints is not beside this checkout"; fi

notebooks: $(READY) ## execute the notebooks of docs/notebooks again
	$(BIN)/python docs/notebooks/make.py

wheel-test: $(READY) ## build a wheel and use it from an environment and a folder of its own
	$(BIN)/python tests/wheel.py

examples: $(READY) ## run every example
	LIPVERIFY_SOUNDNESS=full $(BIN)/pytest tests/unit/test_examples.py tests/unit/test_plugin.py

zoo: $(READY) ## train the model zoo again
	$(BIN)/lipverify zoo build all --force

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

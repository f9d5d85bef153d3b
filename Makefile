# Every verb sets up what it needs: on a new machine `make demo` alone, or `make test` alone, is enough.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test test-all check docs bench clean

help: ## show the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed ## the whole job on a small real model: train, score, unlearn, evaluate, report
	$(BIN)/imu demo --force demo

# Single-threaded tests in two processes, who takes from the other what it has left: `make test WORKERS=8` with more cores.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

test: $(VENV)/.installed ## the tests (about four minutes on two cores)
	OMP_NUM_THREADS=1 $(PYTEST)

test-all: $(VENV)/.installed ## the tests, the slow ones too
	OMP_NUM_THREADS=1 $(PYTEST) -m ''

# What compares floats. The second plan of work: no vector units beyond the oldest, and two threads.
NUMERIC := tests/commands/test_features.py tests/evaluation tests/features tests/influence tests/linear \
	tests/models/test_dtypes.py tests/models/test_library_folders.py tests/statistics tests/unlearning

check: $(VENV)/.installed ## format, lint, types, layers, documentation, then the tests, those of numbers on a plainer processor too
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check
	ATEN_CPU_CAPABILITY=default OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive $(PYTEST) --quiet $(NUMERIC)
	OMP_NUM_THREADS=1 $(PYTEST)

docs: $(VENV)/.installed ## rewrite the generated parts of the documentation
	$(BIN)/python docs/generate.py

bench: $(VENV)/.installed ## run the benchmarks that need no more than ../shared, and keep their raw results
	$(BIN)/python benchmarks/run_all.py

clean: ## remove what the other verbs made
	rm -rf $(VENV) demo build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

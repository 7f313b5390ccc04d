# Every target builds what it needs: a .venv from pyproject.toml under constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow bench lint clean

demo: .venv/installed
	$(BIN)/dpcomp demo

test: .venv/installed-test
	$(BIN)/python -m pytest -q -n 2

test-slow: .venv/installed-test
	$(BIN)/python -m pytest -q -m "slow or not slow"

bench: .venv/installed-bench
	$(BIN)/python benchmarks/codec.py
	$(BIN)/python benchmarks/allocation.py
	$(BIN)/python benchmarks/training_cost.py

lint: .venv/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test]"
	touch $@

.venv/installed-bench: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[bench]"
	touch $@

.venv/installed-lint: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[lint]"
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache

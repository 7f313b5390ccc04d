# Every target builds what it needs: a .venv from pyproject.toml under constraints.txt.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow bench bench-codec docs paper lint clean

demo: .venv/installed
	$(BIN)/dpcomp demo

test: .venv/installed-test
	$(BIN)/python -m pytest -q -n 2 --dist worksteal

test-slow: .venv/installed-test
	DPCOMP_CHECK_EVERY_CALL=1 $(BIN)/python -m pytest -q -m "slow or not slow"

bench: .venv/installed-bench
	$(BIN)/python -m benchmarks

bench-codec: .venv/installed-bench
	$(BIN)/python -m benchmarks.codec
	$(BIN)/python -m benchmarks.codec.allocation

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open site/index.html"

paper: .venv/installed
	@command -v latexmk >/dev/null || { echo "make paper needs LaTeX: on Debian, apt-get install latexmk texlive-latex-extra \
	texlive-fonts-recommended"; exit 1; }
	$(BIN)/python -m experiments paper-figures
	$(BIN)/python -m experiments numbers
	cd paper && latexmk -pdf -interaction=nonstopmode -halt-on-error paper.tex

lint: .venv/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[research]"
	touch $@

# In one go: a second call of pip would build and resolve the project once more.
.venv/installed-test: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[research,test]"
	touch .venv/installed $@

.venv/installed-bench: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[bench]"
	touch $@

.venv/installed-docs: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[docs]"
	touch $@

.venv/installed-lint: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[lint]"
	touch $@

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .ruff_cache

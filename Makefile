# `make demo` and `make test` set everything up by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Some hundred processes are started: each module of ours is compiled once, not by each of them.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo docs style types test test-slow clean

demo: $(VENV)/ready
	$(BIN)/ppll train digits-resnet --stages 4
	@run=$$(ls -td runs/digits-resnet-* | head -n 1); \
	echo "next: $(BIN)/ppll report $$run   # the run on one page"; \
	echo "      $(BIN)/ppll trace $$run    # which stage holds up the others"

docs: $(VENV)/ready
	$(BIN)/sphinx-build -q -n -W --keep-going -c docs -d build/doctrees . build/docs
	@echo "docs: build/docs/docs/README.html"

style: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/ready
	$(BIN)/mypy

test: $(VENV)/ready
	$(MAKE) --jobs 2 --output-sync style docs types
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: $(VENV)/ready
	$(BIN)/python -m pytest -m slow

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

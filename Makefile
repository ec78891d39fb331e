# Two commands on a fresh machine: `make quickstart` and `make test`. Python 3.10-3.13 and make is all they need.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: quickstart test lint clean

quickstart: $(VENV)/quickstart.ready
	$(BIN)/python -m toolkit.quickstart --output quickstart

test: $(VENV)/dev.ready
	$(BIN)/python -m pytest

lint: $(VENV)/dev.ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

$(VENV)/quickstart.ready: pyproject.toml install.py
	$(PYTHON) install.py $(VENV) demo
	@touch $@

$(VENV)/dev.ready: $(VENV)/quickstart.ready
	$(PYTHON) install.py $(VENV) dev
	@touch $@

clean:
	rm -rf $(VENV) quickstart build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# Two commands on a fresh machine: `make quickstart` and `make test`. Python 3.10-3.13 and make is all they need.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TYPES  := build/types/berxit

.PHONY: quickstart test test-slow lint types clean

quickstart: $(VENV)/quickstart.ready
	$(BIN)/python -m berxit.toolkit.quickstart --output quickstart

test: $(VENV)/dev.ready
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/dev.ready
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/dev.ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(MAKE) types

# mypy does not read setuptools' package-dir: it gets the installed layout as links.
types: $(VENV)/dev.ready
	mkdir -p $(TYPES) && ln -sfn $(CURDIR)/berxit/*.* $(CURDIR)/devices $(CURDIR)/exporters $(CURDIR)/runtime \
		$(CURDIR)/toolkit $(CURDIR)/train $(TYPES)/
	$(BIN)/mypy

$(VENV)/quickstart.ready: pyproject.toml install.py
	$(PYTHON) install.py $(VENV) demo
	@touch $@

$(VENV)/dev.ready: $(VENV)/quickstart.ready
	$(PYTHON) install.py $(VENV) dev
	@touch $@

clean:
	rm -rf $(VENV) quickstart build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# `make quickstart` and `make test` need only Python 3.10-3.13 and make. They install the versions in requirements/;
# with NEWEST=1, the newest that pyproject.toml accepts. `make lock` writes requirements/; it needs uv.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
TYPES  := build/types/berxit
PYTHON310 ?= python3.10
TEST_MODELS := $(CURDIR)/build/test-models

.PHONY: quickstart test test-slow test-install test-aarch64 test-models test-jetson test-lowest results lint types docs links lock clean

quickstart: $(VENV)/quickstart.ready
	$(BIN)/python -m berxit.toolkit.quickstart --output quickstart

test: $(VENV)/dev.ready
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-slow: $(VENV)/dev.ready
	$(BIN)/python -m pytest -m slow

# Resolves every install line that pages and messages print. Needs a package index.
test-install: $(VENV)/dev.ready
	$(BIN)/python -m pytest -m index -rs

# On an emulated Raspberry Pi; skipped if the emulator cannot be downloaded.
test-aarch64: $(VENV)/dev.ready
	$(BIN)/python -m pytest -m aarch64 -rs

# The tiny models, checkpoints and bundles of the tests of the runtime.
test-models: $(VENV)/dev.ready
	rm -rf $(TEST_MODELS)
	BERXIT_TEST_MODELS=$(TEST_MODELS) $(BIN)/python -m pytest tests/runtime --setup-only --quiet >/dev/null

# Tests of the runtime in other environments, with Python 3.10 and without torch: the packages of a Jetson (JetPack 6,
# numpy 1), and the lowest versions that pyproject.toml accepts. The environment $(VENV) builds the models for them.
test-jetson: ENVIRONMENT := -e '.[jetson,onnxruntime]' numpy==1.26.4 cuda-python==12.8.0
test-lowest: ENVIRONMENT := -e '.[onnxruntime]' -r requirements/lowest.txt

test-jetson test-lowest: test-models
	$(PYTHON310) -m venv build/$@
	build/$@/bin/python -m pip install --quiet $(ENVIRONMENT) pytest pytest-xdist hypothesis onnx scipy scikit-learn
	BERXIT_TEST_MODELS=$(TEST_MODELS) build/$@/bin/python -m pytest tests/runtime -n 2 -rs

# Lists the commands that generate results/, with their duration, and skips those whose data is missing.
# DATA and MODELS are folders; RUN=ENTRY runs one entry.
results: $(VENV)/dev.ready
	DATA="$(DATA)" MODELS="$(MODELS)" $(BIN)/python -m benchmarks.results $(if $(RUN),--run $(RUN))

lint: $(VENV)/dev.ready
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/python tools/prose_lint.py
	$(MAKE) types

types: $(VENV)/dev.ready links
	$(BIN)/mypy

docs: $(VENV)/dev.ready links
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# mypy and mkdocs do not support setuptools' package-dir. For them, links form the layout of an installed berxit.
links:
	mkdir -p $(TYPES) && ln -sfn $(CURDIR)/berxit/*.* $(CURDIR)/devices $(CURDIR)/exporters $(CURDIR)/runtime \
		$(CURDIR)/toolkit $(CURDIR)/train $(TYPES)/

$(VENV)/quickstart.ready: pyproject.toml install.py requirements/quickstart.txt
	$(PYTHON) install.py $(VENV) demo $(if $(NEWEST),--newest)
	@touch $@

$(VENV)/dev.ready: $(VENV)/quickstart.ready requirements/dev.txt
	$(PYTHON) install.py $(VENV) dev $(if $(NEWEST),--newest)
	@touch $@

lock:
	$(PYTHON) tools/lock.py

clean:
	rm -rf $(VENV) quickstart build *.egg-info .pytest_cache .mypy_cache .ruff_cache

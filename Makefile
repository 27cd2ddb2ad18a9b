# Two commands are promised: `make demo` and `make test`. Each sets up whatever is missing first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STATE ?= state

.PHONY: help setup demo test test-fast lint bench up down docs constraints clean

help:  ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

setup:  ## system packages (when allowed), .venv, pinned Python packages
	@$(PYTHON) infra/bootstrap.py

demo: setup  ## the main job, end to end, on simulated and (where present) real data
	@$(BIN)/nightbeam demo

test: lint  ## everything: rules, unit tests, real servers, CASA
	@$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 15

test-fast: setup  ## what needs no server and no CASA, in about a minute
	@$(BIN)/pytest --numprocesses 2 --dist loadfile -m "not system and not slow" tests/conformance tests/properties tests/unit

lint: setup  ## ruff, mypy, import contracts
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-logo

bench: setup  ## every benchmark, small
	@for b in benchmarks/[a-z]*.py; do echo "== $$b"; $(BIN)/python $$b --quick || exit 1; done

up: setup  ## start the platform in $(STATE)
	@$(BIN)/nightbeam up --state-dir $(STATE)

down: setup  ## stop it
	@$(BIN)/nightbeam down --state-dir $(STATE)

docs: setup  ## the documentation as HTML in site/
	@$(BIN)/sphinx-build -q -W --keep-going -b html docs site && echo "open site/index.html"

constraints:  ## pin every version that .venv holds now
	@{ echo "# Every version, pinned. Made by \`make constraints\` from a tested environment."; \
	   $(BIN)/pip freeze --all --exclude-editable | sed 's/+cpu$$//' | grep -v '^nightbeam'; } > constraints.txt

clean:  ## caches only; data and state stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache site

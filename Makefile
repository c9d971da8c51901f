# Two commands do all the set-up: `make demo` and `make test`. They need Python ≥ 3.11 and make, nothing else.
# The environment lives in .venv and is rebuilt only when requirements.lock or pyproject.toml changes.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
FOR ?=
ARGS ?=

# The first interpreter that is new enough; PYTHON=… overrides.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help demo test test-unit test-engines compiled static lint format bench selection-figures docs lock clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r n t; do printf '  make %-10s %s\n' "$$n" "$$t"; done

demo: $(READY) ## router, three simulated engines and a workload; FOR=10s ends by itself
	@$(BIN)/turnout demo $(if $(FOR),--for $(FOR))

test: static compiled ## environment, lint, types, contracts, all tests, with the hot path compiled
	@$(BIN)/python -m pytest -q $(ARGS)

test-unit: $(READY) ## unit and property tests only
	@$(BIN)/python -m pytest -q tests/unit tests/property $(ARGS)

compiled: $(READY) ## compile the hot path, where there is a C compiler (docs/adr/0004)
	@$(BIN)/python tools/compile.py

test-engines: $(READY) ## the same router over real llama.cpp and vLLM, where they are installed (says why not)
	@TURNOUT_TEST_ENGINES=1 $(BIN)/python -m pytest -q -rs -p no:cacheprovider tests/engines $(ARGS)

static: $(READY)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo

# Sizes and the currency of generated docs are tests, so that a failure says what is wrong; `make test` runs them anyway.
lint: static ## ruff, format, mypy, import contracts, sizes, docs are current
	@$(BIN)/python -m pytest -q tests/architecture tests/unit/config/test_reference.py

format: $(READY) ## rewrite in the house format
	@$(BIN)/ruff check --quiet --fix . ; $(BIN)/ruff format --quiet .

bench: compiled ## compare with other routers, see benchmarks/README.md
	@$(BIN)/python -m benchmarks $(ARGS)

LABELS = ../shared/data/selection
MMLU = $(LABELS)/mmlu_38_subjects.csv.gz
GSM8K = $(LABELS)/gsm8k_half.csv.gz
EVAL = $(BIN)/turnout bundle eval --wide --price gpt-4-1106-preview=10,30 --price mixtral-8x7b-instruct=0.6,0.6

selection-figures: $(READY) ## reproduce the tables of docs/selection.md from the labels in LABELS (a quarter of an hour)
	@test -r $(MMLU) || { echo "error: no labels at $(LABELS); run: make selection-figures LABELS=/path/to/labels" >&2; exit 1; }
	@for figures in "$(MMLU) --seeds 5" "$(GSM8K) --seeds 5" "$(MMLU) --by-group --seeds 5" "$(MMLU) --test $(GSM8K)" \
		"$(GSM8K) --test $(MMLU)"; do printf '\n== turnout bundle eval %s\n' "$$figures"; $(EVAL) $$figures || exit 1; done

docs: $(READY) ## regenerate docs/configuration.md
	@$(BIN)/python -m turnout.config.reference > docs/configuration.md.new && mv docs/configuration.md.new docs/configuration.md

lock: ## pin the newest versions that pyproject.toml allows (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --upgrade --generate-hashes --no-header --no-annotate \
		--no-config --default-index https://pypi.org/simple --group dev pyproject.toml -o requirements.lock

clean: ## remove the environment and all caches
	rm -rf $(VENV) build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# The stamp is written last, so that an interrupted set-up starts again from nothing.
$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: found no Python >= 3.11 (tried python3, python3.13, python3.12, python3.11)." \
		"Install one, or run: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "error: $(PYTHON) is $$($(PYTHON) --version 2>&1), but Turnout needs Python >= 3.11" >&2; exit 1; }
	@echo "setting up $(VENV) with $(PYTHON)"
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) cannot make an environment;" \
		"on Debian and Ubuntu install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

# make setup        the environment in .venv (once; again when pyproject.toml or constraints.txt change)
# make quickstart   train LEDPO on a real model and real preference pairs on a CPU, and show what it did
# make test         style, documents and the quick tests, as CI does
# make test-slow    the tests that take longer, or need the real model
# make experiment   run an experiment at its cpu profile: make experiment NAME=loss_variants_impact
# make docs         the documents as a site, in site/; a broken link, anchor or name fails
# make tables       the tables in the documents, from those of the code
# make architecture the floors and the import graph in ARCHITECTURE.md, from the code's imports
# Variables: PYTHON (the interpreter .venv is made with), MODEL (a hub name or folder instead of the prepared
# model; its template must be given, too, if it is not SmolLM2's), ARGS (further key=value pairs of the recipe).

PYTHON ?= python3
NAME ?= loss_variants_impact
MODEL ?=
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.ledpo-setup
RECIPE := yaml_recipes/quickstart.yaml
RUN := runs/quickstart
OFFLINE := HF_HUB_OFFLINE=1
ONLINE_IF_MODEL := $(if $(MODEL),,$(OFFLINE))

.PHONY: setup quickstart prepare experiment test test-slow browser lint format docs tables architecture clean clean-all

setup: $(STAMP)

# The .pth and .start files are copied at installation, unlike the rest of an editable install.
$(STAMP): pyproject.toml constraints.txt $(wildcard ledpo_plugin/autoload/*.pth ledpo_plugin/autoload/*.start)
	@command -v $(PYTHON) >/dev/null || { echo "No $(PYTHON) here: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or later is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make setup PYTHON=python3.11"; exit 1; }
	@test -x $(BIN)/python || { echo "Making .venv ..."; $(PYTHON) -m venv .venv; }
	@echo "Installing LLaMA-Factory, torch and the plugin into .venv (about 7 GB, 3 minutes or more) ..."
	@start=$$(date +%s); \
	(while sleep 20 >/dev/null 2>&1; do echo "  $$(( $$(date +%s) - start )) s, .venv has $$(du -sh .venv | cut -f1)"; done) & \
	ticker=$$!; trap 'kill $$ticker 2>/dev/null' EXIT; \
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[quickstart,ray,eval,docs,dev]"
	@$(BIN)/python -c 'import torch, torchaudio, torchvision' || { \
	  echo "torch, torchaudio and torchvision do not fit together: these builds are not all from one source."; \
	  echo "Delete .venv and run make setup again, with pip configured for PyPI alone (see pip config list)."; exit 1; }
	@touch $@
	@echo "Ready: $(BIN)/llamafactory-cli train RECIPE.yaml"

prepare: setup
	@$(ONLINE_IF_MODEL) TQDM_DISABLE=1 $(BIN)/ledpo quickstart prepare $(if $(MODEL),--model $(MODEL))

quickstart: prepare
	@echo "Training: llamafactory-cli train $(RECIPE) (a few minutes on two cores)"
	@$(ONLINE_IF_MODEL) LLAMAFACTORY_VERBOSITY=WARN $(BIN)/llamafactory-cli train $(RECIPE) \
	  output_dir=$(RUN) $(if $(MODEL),model_name_or_path=$(MODEL)) $(ARGS)
	@$(ONLINE_IF_MODEL) LLAMAFACTORY_VERBOSITY=WARN TQDM_DISABLE=1 $(BIN)/ledpo quickstart show $(RUN)

# Reports are opened in a real browser. Without one, and without the right to install it, those tests are skipped.
browser:
	@command -v chromium >/dev/null || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null || \
	  { echo "Installing Debian's chromium ..."; apt-get -qq update && apt-get -qq install -y chromium >/dev/null; } || \
	  echo "chromium could not be installed: the tests that need it are skipped."

experiment: setup
	@$(OFFLINE) $(BIN)/ledpo run yaml_recipes/$(NAME) --profile cpu

test: lint docs browser
	@$(BIN)/ledpo validate --no-files yaml_recipes
	@$(OFFLINE) $(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup
	@$(OFFLINE) TQDM_DISABLE=1 $(BIN)/ledpo quickstart prepare
	@$(OFFLINE) TQDM_DISABLE=1 $(BIN)/ledpo prepare
	@$(OFFLINE) OMP_NUM_THREADS=$$(nproc) $(BIN)/python -m pytest -q -m slow

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

# Always from nothing (-E): a page that is not read again says nothing of its broken links.
docs: setup
	@$(OFFLINE) $(BIN)/sphinx-build -q -E -W --keep-going -j auto -b html -c docs -d site/.doctrees . site
	@echo "Documents: site/index.html"

tables: setup
	@$(BIN)/python -m ledpo_plugin.cli.tables *.md docs/*.md docs/zh/*.md yaml_recipes/README.md

architecture: setup
	@$(BIN)/python docs/architecture.py

format: setup
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf $(RUN) site dist build .pytest_cache .ruff_cache

clean-all: clean
	rm -rf .venv .ledpo

# `make` lists what there is. Every target sets up .venv first when that is needed; pyproject.toml says what goes in.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo lab lint test test-all test-browser test-native bench bench-large verse notebooks map audit clean

VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PYTHON
ARGS ?=

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.installed  ## the whole life of a small model on this machine, from text to a bundle ready to serve
	$(BIN)/pangu-lab demo $(ARGS)

lab: $(VENV)/.installed  ## open JupyterLab on the notebooks (127.0.0.1 only)
	$(BIN)/jupyter lab --ip=127.0.0.1 $(if $(filter 0,$(shell id -u)),--allow-root) \
		--ServerApp.root_dir="$(CURDIR)" --LabApp.default_url=/lab/tree/notebooks $(ARGS)

lint: $(VENV)/.installed-test  ## the form of all Python, and its likely faults (`make lint ARGS=--fix` mends what it can)
	$(BIN)/ruff check $(ARGS) .
	$(BIN)/ruff format $(if $(filter --fix,$(ARGS)),,--check) .

test: $(VENV)/.installed-test  ## all tests but the slow ones, a file at a time in each of two workers
	@sh scripts/system_packages.sh
	$(PYTEST) -n 2 --dist loadfile $(ARGS)

test-all: $(VENV)/.installed-test  ## the slow ones too
	@sh scripts/system_packages.sh
	$(PYTEST) -m "" $(ARGS)

test-browser: $(VENV)/.installed-test  ## the tests that look at pages and notebooks in a browser
	@sh scripts/system_packages.sh
	$(PYTEST) -m browser $(ARGS)

test-native: $(VENV)/.installed-test  ## the C kernels alone, with every access to memory checked (AddressSanitizer, gcc)
	PANGU_LAB_CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover -g -O1" \
		ASAN_OPTIONS=detect_leaks=0 LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
		$(PYTEST) -p no:cacheprovider tests/ops/native $(ARGS)

bench: $(VENV)/.installed-bench  ## speed beside PyTorch and transformers (installs both)
	$(BIN)/python -m tests.benchmarks $(ARGS)

bench-large: $(VENV)/.installed  ## the whole 2.6B on this machine: import, generate, export (15 GB of memory, 32 GB of disk)
	$(BIN)/python -m tests.benchmarks.large $(ARGS)

verse: $(VENV)/.installed-corpus  ## the model that comes with the lab, made again: FROM=COLLECTION (an hour on two cores)
	@sh scripts/make_verse.sh $(if $(FROM),"$(FROM)") $(ARGS)

notebooks: $(VENV)/.installed  ## run every notebook, or ARGS=notebooks/NAME.ipynb, and keep its outputs
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False \
		--ExecutePreprocessor.store_widget_state=False $(or $(ARGS),notebooks/*.ipynb)

map: $(VENV)/.installed-test  ## the parts of the library and what imports what, as docs/architecture.png
	$(BIN)/python -m tests.architecture

audit: $(VENV)/.installed-audit  ## known holes of what is installed (asks PyPI's database), and sbom.json, a list of it all
	$(BIN)/cyclonedx-py environment $(VENV) --output-file sbom.json
	$(BIN)/pip-audit --local --skip-editable --progress-spinner off $(ARGS)

clean:  ## remove .venv and caches; runs, data sets and exports stay
	rm -rf $(VENV) build dist pangu_lab/built *.egg-info .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml
	@sh scripts/install.sh

$(VENV)/.installed-%: pyproject.toml
	@sh scripts/install.sh $*

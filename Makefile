# Two commands for a machine that has only Python, pip and make: `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints-dev.txt
# This exact release is installed before anything that depends on torch: where an index offers a
# CPU build of it, that build satisfies the pin, and nothing later replaces it by a larger one.
TORCH  := torch==2.13.0

DEV_STAMP  := $(VENV)/.stamp-dev
DEMO_STAMP := $(VENV)/.stamp-demo
# A developer's environment has all that the demo needs.
DEMO_ENV   := $(if $(wildcard $(DEV_STAMP)),$(DEV_STAMP),$(DEMO_STAMP))
INPUTS     := pyproject.toml constraints-dev.txt

# Two cores: two workers of one thread each, since many small tensors gain nothing from threads. By
# file, since the examples of a page follow each other.
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-all zoo ablate peers lint format bench docs wheel editable dev clean
.DEFAULT_GOAL := test

demo: $(DEMO_ENV)
	$(BIN)/frostline demo

test: $(DEV_STAMP)
	$(TESTS) -m "not slow"

test-all: $(DEV_STAMP)
	$(TESTS)

# What a step changes, predicted without data, against a real step: on a hundred architectures.
# In one process, whose last test counts what the others decided.
zoo: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/auditing/predicting/test_architectures.py

ablate: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/ablate.py

# Who holds what: the hold tables over the ways in which people freeze, into docs and README.
peers: $(DEV_STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.peers

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python bench/_report.py --check
	$(BIN)/python bench/two_domains.py --check
	$(BIN)/python bench/digits_accumulation.py --check
	$(BIN)/python bench/gpu_accumulation.py --check
	$(BIN)/python -m tests.peers --check
	$(BIN)/python -m tests.rule_pages --check
	$(BIN)/python -m tests.auditing.oracle_page --check

format: $(DEV_STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV_STAMP)
	@set -e; for script in bench/[!_]*.py; do echo "== $$script"; $(BIN)/python $$script; done

docs: $(DEV_STAMP)
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

# Tests are about what users get: build the wheel from the sdist, and put it in the editable's place.
wheel: $(DEV_STAMP)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(PIP) --no-deps --force-reinstall dist/*.whl

editable: $(DEV_STAMP)
	$(PIP) --no-deps --editable .

dev: $(DEV_STAMP)

# timm declares torchvision, whose builds do not fit every torch; tests/_torchvision.py stands in.
$(DEV_STAMP): $(INPUTS) | $(BIN)/python
	@echo "Installing frostline and its tools into $(VENV). Once, a few minutes."
	@$(PIP) $(TORCH)
	@$(PIP) --editable ".[dev,report,lightning,transformers,accelerate]"
	@$(PIP) --no-deps timm
	@touch $@

$(DEMO_STAMP): $(INPUTS) | $(BIN)/python
	@echo "Installing frostline into $(VENV). Once, a minute or two."
	@$(PIP) $(TORCH)
	@$(PIP) --editable ".[report]"
	@touch $@

$(BIN)/python:
	@$(PYTHON) -m venv $(VENV)

clean:
	rm -rf dist docs/_build frostline-demo .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

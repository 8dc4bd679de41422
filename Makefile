# The project's habits. `make demo` and `make test` install what they need on first use.
#   PYTHON   interpreter that makes the environment (>= 3.11)
#   VENV     the environment

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --constraint constraints.txt

KMP_BLOCKTIME ?= 0
PIP_DISABLE_PIP_VERSION_CHECK ?= 1
export KMP_BLOCKTIME PIP_DISABLE_PIP_VERSION_CHECK

.PHONY: demo test check bench clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/fedstill simulate

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy benchmarks/*.py docs/generate_reference.py

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/selection.py
	$(BIN)/python benchmarks/bank.py
	$(BIN)/python benchmarks/serving_decision.py

clean:
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# The stamps make a second `make demo` start at once; a changed pin or dependency installs again.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP_INSTALL) --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP_INSTALL) --editable '.[dev]'
	touch $@ $(VENV)/.installed

$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

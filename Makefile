# Two commands matter: `make demo` and `make test`. Both make .venv and install what they need.
PYTHON ?= python3
VENV := .venv
# Extras that the tests should find, e.g. EXTRAS=rtx: tests that need an absent one are skipped and say so.
EXTRAS ?=
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint clean

demo: $(VENV)/.installed
	$(BIN)/edgemm demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" --cov=edgemm --cov-report=term:skip-covered $(PYTEST_ARGS)

# Planted bugs, every GPU architecture, models over 2 GB: minutes each. Three at a time on two cores: one of them runs the
# tests that keep to the clock, which mostly wait.
test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 3 --dist loadgroup -m slow $(PYTEST_ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "edgemm needs Python 3.10 or later, found: $$($(PYTHON) --version). Name one: make PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --group test --group lint
ifneq ($(EXTRAS),)
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
endif
	@touch $@

clean:
	rm -rf $(VENV) dist .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis

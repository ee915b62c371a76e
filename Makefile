# Two commands are enough in a fresh clone: `make train` and `make test`. Both fill .venv on first use.
PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
NIGHTLY := .venv-nightly/.installed

.DEFAULT_GOAL := help
.PHONY: help train test lint bench clean

help: ## Print the targets.
	@sed -n 's/^\([a-z]*\):.*## /make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'
	@echo 'PYTHON=python3.12 chooses the interpreter that .venv is made with.'

train: $(STAMP) ## Train on the default task; ARGS="env.task=walker-stand seed=2" changes the configuration.
	$(BIN)/python examples/tdmpc2_multigamma.py $(ARGS)

test: $(STAMP) ## Run the tests and the examples in the docstrings; ARGS="-k planner" selects some.
	$(BIN)/python -m pytest -n auto --dist worksteal --doctest-modules test torchrl_tdmpc $(ARGS)

lint: $(STAMP) ## Check style and format.
	$(BIN)/ruff check
	$(BIN)/ruff format --check

bench: $(STAMP) $(NIGHTLY) ## Measure the speed; ARGS="--rounds 1 --sizes 5" measures a part.
	$(BIN)/python -m benchmarks.speed $(ARGS)

clean: ## Remove .venv, build products and caches (never the outputs of runs).
	rm -rf .venv .venv-nightly build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Touched last, so an interrupted installation is taken up again by the next call. The project and
# antlr (a dependency of hydra) build from source: with the pinned setuptools, not with the newest.
$(STAMP): setup.py constraints.txt
	@echo 'Installing the pinned packages into .venv: once, a few minutes.'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dmc,cli,test,lint]'
	@touch $@

$(NIGHTLY): benchmarks/requirements-nightly.txt
	@echo "Installing TorchRL's nightly into .venv-nightly: once, a few minutes."
	$(PYTHON) -m venv .venv-nightly
	.venv-nightly/bin/python -m pip install --quiet -c constraints.txt setuptools
	.venv-nightly/bin/python -m pip install --quiet --no-build-isolation -r $<
	@touch $@

# Two commands are enough in a fresh clone: `make train` and `make test`. Both fill .venv on first use.
PYTHON ?= python3
ARGS ?=
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NIGHTLY := .venv-nightly/.nightly
CUDA := .venv-gpu/.cuda
MUTANTS := $(VENV)/.mutants
DOCS := $(VENV)/.docs
RAY := $(VENV)/.ray
NIGHTLY_FILES := build/upstream/nightly
VERSIONS := $(shell sed -n 's/.*:: Python :: \(3\.[0-9]*\)".*/\1/p' setup.py)
TRAIN := python examples/tdmpc2_multigamma.py
TEST := python -m pytest -n auto --dist worksteal --doctest-modules test torchrl_tdmpc
# Sizes too small to learn anything
SHORT := env.episode_length=10 train.seed_steps=20 train.steps=40 train.batch_size=8 \
	planner.num_samples=16 planner.num_elites=4 planner.num_pi_trajs=2 eval.interval=20

.DEFAULT_GOAL := help
.PHONY: help train test test-compiled test-fast test-pythons test-nightly test-ray gpu-check lint types docs install bench mutants \
	upstream upstream-check clean interpreter

help: ## Print the targets.
	@sed -n 's/^\([a-z-]*\):.*## /make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-18s %s\n", $$1, $$2}'
	@echo 'PYTHON=python3.12 chooses the interpreter that .venv is made with: $(VERSIONS).'

train: $(STAMP) ## Train on the default task; ARGS="env.task=walker-stand seed=2" changes the configuration.
	$(BIN)/$(TRAIN) $(ARGS)

test: $(STAMP) ## Run the tests and the examples in the docstrings; ARGS="-k planner" selects some.
	$(BIN)/$(TEST) -m "not compiled and not docs" $(ARGS)

test-compiled: $(STAMP) ## Compare compiled updates and plans with the reference numbers.
	$(BIN)/$(TEST) -m compiled $(ARGS)

test-fast: $(STAMP) ## Run the tests that neither train nor compile, then train for a few agent steps.
	$(BIN)/$(TEST) -m "not slow and not docs" $(ARGS)
	output_dir=$$(mktemp -d) && $(BIN)/$(TRAIN) $(SHORT) output_dir=$$output_dir && rm -r $$output_dir

test-pythons: ## Do so with each Python of setup.py that this machine has, in .venv-3.10 and so on.
	@for version in $(VERSIONS); do \
		for python in python$$version "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/$$version.*/bin/python ''; do \
			"$$python" -c '' 2>/dev/null && break; \
		done; \
		if [ -z "$$python" ]; then \
			echo "Python $$version: not found"; \
		elif $(MAKE) test-fast PYTHON="$$python" VENV=.venv-$$version; then \
			echo "Python $$version: passed"; \
		else \
			echo "Python $$version: FAILED"; failed=1; \
		fi; \
	done; \
	[ -z "$$failed" ]

test-nightly: $(NIGHTLY) ## Run the tests with TorchRL's next series, in .venv-nightly.
	.venv-nightly/bin/$(TEST) $(ARGS)

gpu-check: $(CUDA) ## Trace plans and updates on CUDA tensors without numbers: no GPU needed; in .venv-gpu.
	.venv-gpu/bin/python -m pytest test/test_device.py $(ARGS)

test-ray: $(RAY) ## Run the tests of actors in a Ray cluster on this machine.
	$(BIN)/python -m pytest test/test_ray.py $(ARGS)

lint: $(STAMP) ## Check style and format.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/hadolint docker/Dockerfile

types: $(STAMP) ## Check the types that users see (mypy).
	$(BIN)/mypy

docs: $(DOCS) ## Run the code of the documentation and build it as a site in build/docs.
	$(BIN)/$(TEST) -m docs
	$(BIN)/codespell README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs examples torchrl_tdmpc
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env --write-all -c docs -d build/doctrees . build/docs

install: $(STAMP) ## Fill .venv with the pinned packages, and do nothing else.

bench: $(STAMP) $(NIGHTLY) ## Measure the speed; ARGS="--rounds 1 --sizes 5" measures a part.
	$(BIN)/python -m benchmarks.speed $(ARGS)

mutants: $(MUTANTS) ## Put mistakes into a copy of the library, and see which the tests notice (up to 2 hours).
	$(BIN)/python -m benchmarks.mutants $(ARGS)

upstream-check: $(STAMP) $(NIGHTLY_FILES) ## Make the patches for TorchRL in build/upstream from the nightly's files.
	$(BIN)/python -m upstream check $(NIGHTLY_FILES)

upstream: $(NIGHTLY) ## Test the patches too, with a checkout's tests: TORCHRL=path; ONLY=03 takes one.
	.venv-nightly/bin/python -m upstream run "$(TORCHRL)" $(if $(ONLY),--only $(ONLY))

clean: ## Remove .venv and its like, build products and caches (never the outputs of runs).
	rm -rf .venv .venv-* build dist docs/gallery *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Before anything is downloaded: PYTHON must be one of the tested versions, and the one that an
# environment was made with, if PYTHON is given. An environment that is there needs no PYTHON.
interpreter:
	@ask='import sys; print("%d.%d" % sys.version_info[:2])'; \
	made=$$($(BIN)/python -c "$$ask" 2>/dev/null); \
	if [ -n "$$made" ] && [ '$(origin PYTHON)' = file ]; then exit 0; fi; \
	version=$$($(PYTHON) -c "$$ask" 2>/dev/null); \
	case ' $(VERSIONS) ' in \
		*" $$version "*) ;; \
		*) echo "error: PYTHON=$(PYTHON) is $${version:-not found}; choose one of Python $(VERSIONS)." >&2; exit 1;; \
	esac; \
	if [ -n "$$made" ] && [ "$$made" != "$$version" ]; then \
		echo "error: PYTHON=$(PYTHON) is $$version, but $(VENV) has $$made; choose another VENV, or remove this one." >&2; \
		exit 1; \
	fi

# Touched last, so an interrupted installation is taken up again by the next call. The project and
# antlr (a dependency of hydra) build from source: with the pinned setuptools, not with the newest.
# From Python 3.13 on dm-control is installed by the last command; before, it is there already.
$(STAMP): setup.py constraints.txt | interpreter
	@echo 'Installing the pinned packages into $(VENV): once, a few minutes.'
	[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt setuptools
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[dmc,cli,test,lint]'
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-deps dm-control
	@touch $@

$(RAY): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[ray]'
	@touch $@

$(MUTANTS): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[mutants]'
	@touch $@

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt --no-build-isolation -e '.[docs]'
	@touch $@

# The files alone: they need no environment of their own to be read.
$(NIGHTLY_FILES): benchmarks/requirements-nightly.txt | $(STAMP)
	rm -rf $@
	$(BIN)/python -m pip download --quiet --no-deps --dest $@ -r $<
	$(BIN)/python -m zipfile -e $@/torchrl_nightly-*.whl $@
	@touch $@

# The same, and then torch's build for CUDA (several GB) in the place of the one for CPUs: === names it
$(CUDA): setup.py constraints.txt
	$(MAKE) VENV=.venv-gpu .venv-gpu/.installed
	version=$$(sed -n 's/^torch==//p' constraints.txt) && .venv-gpu/bin/python -m pip install --quiet "torch===$$version"
	@touch $@

# The same, and then the other series in TorchRL's place.
$(NIGHTLY): benchmarks/requirements-nightly.txt setup.py constraints.txt
	$(MAKE) VENV=.venv-nightly .venv-nightly/.installed
	.venv-nightly/bin/python -m pip uninstall --quiet --yes torchrl torchrl-nightly tensordict
	.venv-nightly/bin/python -m pip install --quiet --no-deps -r $<
	@touch $@

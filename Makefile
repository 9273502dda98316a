# make install | textworld | stacks | browser | demo | demo-llm | bench-trl | test | test-quick | test-textworld | test-stacks | lint | check | docs.   make PYTHON=python3.12 … takes another Python (3.11 or newer).

IS_NEW := -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
ifeq ($(origin PYTHON),undefined)
PYTHON := $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p $(IS_NEW) && { echo $$p; break; }; done)
PYTHON := $(or $(PYTHON),python3)
endif
BIN := .venv/bin
INSTALLED := .venv/.installed

TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

.PHONY: install textworld stacks browser demo demo-llm bench-trl test test-quick test-textworld test-stacks lint check docs clean
.DEFAULT_GOAL := install

install: $(INSTALLED)

# A stamp, so that a second call costs nothing; it is younger than what it was made from.
$(INSTALLED): pyproject.toml constraints.txt
	@"$(PYTHON)" $(IS_NEW) || { echo "envrl needs Python 3.11 or newer, and '$(PYTHON)' is not: name one with\
 'make PYTHON=/path/to/python3.11'" >&2; exit 1; }
	@echo "installing into .venv (a few minutes the first time, most of them for torch)"
	@"$(PYTHON)" -m venv .venv || { echo "$(PYTHON) cannot make a virtual environment: install its venv module, which\
 Debian and Ubuntu call python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "installed: 'source .venv/bin/activate' puts envrl on the path, 'envrl --help' lists its commands"

# ALFWorld's own engine, for the worlds alfworld-textworld and household-textworld.
textworld: install
	@$(BIN)/python -c 'import sys; from importlib.util import find_spec as found; \
		sys.exit(not all(map(found, ("alfworld", "fast_downward", "textworld"))))' || { \
		echo "installing ALFWorld's own engine (one to three minutes: it compiles a planner)"; \
		$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[alfworld-textworld]'; }

# The other libraries that envrl works with, some 250 packages: their tests are skipped without them.
stacks: install
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev,inspect,openenv,ray,tensorboard,trackio,trl,verifiers,wandb]'

# A Chromium for the tests of `envrl view`, which are skipped without it, and what drives it.
browser: install
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[browser]'
	@for name in chromium chromium-browser google-chrome google-chrome-stable chrome; do \
		command -v $$name >/dev/null && exit 0; done; \
		apt-get install -qq -y --no-install-recommends chromium >/dev/null

# A second time it goes on with the run, or finds it finished and only writes the report.
demo: install
	@$(BIN)/envrl train household-demo --run runs/demo $$(test -d runs/demo && echo --resume)
	@$(BIN)/envrl report runs/demo

# The same with a pre-trained model, which is got once: about a quarter of an hour.
demo-llm: install
	@$(BIN)/envrl models get smollm2-135m
	@$(BIN)/envrl train smollm2-demo --run runs/demo-llm $$(test -d runs/demo-llm && echo --resume)
	@$(BIN)/envrl report runs/demo-llm

# The update beside TRL's trainer, at the preset's size and at 100 million parameters: about a quarter of an hour.
bench-trl: install
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[trl]'
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/beside_trl.py household-demo
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/beside_trl.py household-demo --shape qwen2-100m --rollout.tasks 1 --rollout.max_steps 5

# One process a core: tests are quick to share, and each is alone with its thread. Files go out in the order of
# tests/conftest.py, the long ones first; by itself xdist would begin with those of many tests.
test: install
	@$(TEST) --no-loadscope-reorder --durations=20 --durations-min=5

# Beside ALFWorld's own engine.
test-textworld: textworld
	@$(TEST) tests/test_original.py tests/test_textworld.py tests/test_as_alfworld.py \
		$(foreach page,household original-engine textworld,'tests/test_docs_commands.py::test_commands_run[docs/worlds/$(page).md]')

# Beside other libraries: a Ray cluster, OpenEnv, verifiers, TRL, datasets, Inspect, trackers.
test-stacks: stacks
	@$(TEST) tests/test_ray.py tests/test_ray_sampler.py tests/test_openenv.py tests/test_stacks.py tests/test_verifiers.py tests/test_beside_trl.py tests/test_exports.py tests/test_tracking.py

# What needs no model, no kill and no second process: for whoever works on it.
test-quick: install
	@$(TEST) -m quick

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright
	@$(BIN)/lint-imports --no-logo

check: test lint

# What is made from the source: docs/recipes.md.
docs: install
	@$(BIN)/python -m envrl.config.reference > docs/recipes.md

clean:
	@rm -rf .venv build dist

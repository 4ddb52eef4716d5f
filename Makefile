# make merge | test | test-all | bench | lint | clean. Each sets up what it needs in .venv first.

PYTHON ?= python3
VENV ?= .venv
DEMO ?= .work/demo
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: merge test test-all bench lint clean

$(VENV)/built: pyproject.toml setup.py CMakeLists.txt constraints.txt $(wildcard csrc/*/*.* csrc/*/*/*.* python/*)
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[test]"
	touch $@

$(VENV)/linted: $(VENV)/built
	$(PIP) --editable ".[lint]"
	touch $@

$(VENV)/benched: $(VENV)/built
	$(PIP) --editable ".[bench]"
	touch $@

# The main job: three fine-tuned siblings of a small Qwen2, merged by a FuseO1-shaped recipe.
merge: $(VENV)/built
	$(BIN)/python bench/checkpoints.py $(DEMO) --size small --targets 3
	$(BIN)/python -m fuseo1_kernels.merge $(DEMO)/merge.yaml $(DEMO)/merged --overwrite
	$(BIN)/python -m fuseo1_kernels
	@ls -l $(DEMO)/merged

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup

# What a change is likely to break: every backend, instruction set and method, in 3 minutes on 2 cores.
test: $(VENV)/built
	$(PYTEST)

test-all: $(VENV)/built
	$(PYTEST) -m ""

bench: $(VENV)/benched
	$(BIN)/python bench/run.py

lint: $(VENV)/linted
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

clean:
	rm -rf build .venv .work fuseo1_kernels/*.so *.egg-info

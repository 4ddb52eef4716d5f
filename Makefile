# make merge | cuda | test | test-all | lint | docs | bench | wheel | clean. Each first installs what it needs into .venv.

PYTHON ?= python3
VENV ?= .venv
DEMO ?= .work/demo
PYTEST_ARGS ?=
BENCH_ARGS ?=
# Wheels hold the CPU part alone, unless this is 1 (docs/wheels.md).
WHEEL_CUDA ?= 0

SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
BIN := $(VENV)/bin
# Without compiling what may never be imported; of what pip says, what takes long.
install = $(BIN)/pip --disable-pip-version-check install --no-compile $(1) \
	| sed -un 's/^ *\(Downloading .* MB)\|Building .* started\|Installing collected packages\).*/   \1/p'
# Of what pip builds with, too; newer versions of pip read the second.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)

# For setup.py: 1 builds the CUDA kernels, 0 leaves them out, unset builds them where there is a GPU. Unset after a
# build with 1, it stays 1.
FUSEO1_CUDA ?= $(if $(wildcard $(VENV)/built1),1)
export FUSEO1_CUDA
BUILT := $(VENV)/built$(FUSEO1_CUDA)

.PHONY: merge cuda test test-all lint docs bench wheel clean
.NOTPARALLEL:

$(VENV)/made:
	@echo "== a virtual environment, $(VENV)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(BUILT): $(VENV)/made pyproject.toml setup.py constraints.txt CMakeLists.txt $(wildcard csrc/*/*.* csrc/*/*/*.* python/*)
	@echo "== the packages that a merge needs, and the kernels, compiled: a minute, and the time to download torch"
	@$(call install,--editable .)
	@rm -f $(VENV)/built*
	@touch $(VENV)/built $@

$(VENV)/with-%: $(VENV)/made pyproject.toml constraints.txt
	@echo "== the packages of the extra $*"
	@$(BIN)/python .ci/extra.py $* | $(call install,--requirement /dev/stdin)
	@touch $@

# The main job: three fine-tuned siblings of a small Qwen2 model, merged by a FuseO1-shaped recipe.
merge: $(BUILT)
	@echo "== a small Qwen2 model and three fine-tunes of it, made of random numbers"
	$(BIN)/python bench/checkpoints.py $(DEMO) --size small --targets 3
	@echo "== their merge"
	$(BIN)/python -m fuseo1_kernels.merge $(DEMO)/merge.yaml $(DEMO)/merged --overwrite
	@echo
	@echo "To try next:"
	@echo "  $(BIN)/python -m fuseo1_kernels                   # versions, and which backends run here"
	@echo "  $(BIN)/python -m fuseo1_kernels.merge --list-recipes              # the published FuseO1 models"
	@echo "  $(BIN)/python -m fuseo1_kernels.verify $(DEMO)/merged --recompute 5   # check what was merged"

cuda:
	$(MAKE) FUSEO1_CUDA=1 $(VENV)/built1
	$(BIN)/python -m fuseo1_kernels

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup

# What a change is likely to break: every backend, instruction set and method.
test: $(BUILT) $(VENV)/with-test
	$(PYTEST) $(PYTEST_ARGS)

test-all: $(BUILT) $(VENV)/with-test
	$(PYTEST) -m "" $(PYTEST_ARGS)

lint: $(BUILT) $(VENV)/with-test $(VENV)/with-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

docs: $(VENV)/with-docs
	$(BIN)/mkdocs build --strict --site-dir .work/site

bench: $(BUILT) $(VENV)/with-bench
	$(BIN)/python bench/run.py $(BENCH_ARGS)

wheel: $(VENV)/with-wheel
	BIN=$(BIN) FUSEO1_CUDA=$(WHEEL_CUDA) .ci/make_wheel dist

clean:
	rm -rf build dist .venv .work fuseo1_kernels/backends/*.so *.egg-info

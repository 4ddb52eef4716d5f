# make merge | cuda | test | test-all | lint | docs | bench | wheel | clean. Each first installs what it needs into .venv.

PYTHON ?= python3
VENV ?= .venv
DEMO ?= .work/demo
PYTEST_ARGS ?=
BENCH_ARGS ?=
# Wheels hold the CPU part alone, unless this is 1 (docs/wheels.md).
WHEEL_CUDA ?= 0

BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --no-compile
# Of what pip builds with, too; newer versions of pip read the second.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_BUILD_CONSTRAINT := $(PIP_CONSTRAINT)

# setup.py's: 1 builds the CUDA kernels, 0 does not, unset does where there is a GPU. Once built, they are built again.
FUSEO1_CUDA ?= $(if $(wildcard $(VENV)/built1),1)
export FUSEO1_CUDA
BUILT := $(VENV)/built$(FUSEO1_CUDA)

.PHONY: merge cuda test test-all lint docs bench wheel clean

$(BUILT): pyproject.toml setup.py CMakeLists.txt constraints.txt $(wildcard csrc/*/*.* csrc/*/*/*.* python/*)
	@echo "== a virtual environment: $(VENV)"
	$(PYTHON) -m venv $(VENV)
	@echo "== the packages that a merge needs (torch is large), and the kernels, compiled: a minute, without downloads"
	$(PIP) --editable .
	@rm -f $(VENV)/built*
	@touch $(VENV)/built $@

$(VENV)/with-%: $(BUILT)
	@echo "== the packages of the extra $*"
	$(BIN)/python .ci/extra.py $* | $(PIP) --requirement /dev/stdin
	@touch $@

# The main job: three fine-tuned siblings of a small Qwen2 model, merged by a FuseO1-shaped recipe.
merge: $(BUILT)
	@echo "== a small Qwen2 model and three fine-tunes of it, made of random numbers"
	$(BIN)/python bench/checkpoints.py $(DEMO) --size small --targets 3
	@echo "== their merge"
	$(BIN)/python -m fuseo1_kernels.merge $(DEMO)/merge.yaml $(DEMO)/merged --overwrite
	@echo
	@echo "Next:"
	@echo "  $(BIN)/python -m fuseo1_kernels                  # versions, and which backends run here"
	@echo "  $(BIN)/python -m fuseo1_kernels.verify $(DEMO)/merged --recompute 5    # checksums; 5 tensors merged again"
	@echo "  $(BIN)/python -m fuseo1_kernels.merge --list-recipes    # the published models"

cuda:
	$(MAKE) FUSEO1_CUDA=1 $(VENV)/built1
	$(BIN)/python -m fuseo1_kernels

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadgroup

# What a change is likely to break: every backend, instruction set and method, in 3 minutes on 2 cores.
test: $(VENV)/with-test
	$(PYTEST) $(PYTEST_ARGS)

test-all: $(VENV)/with-test
	$(PYTEST) -m "" $(PYTEST_ARGS)

lint: $(VENV)/with-test $(VENV)/with-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

docs: $(VENV)/with-docs
	$(BIN)/mkdocs build --strict --site-dir .work/site

bench: $(VENV)/with-bench
	$(BIN)/python bench/run.py $(BENCH_ARGS)

wheel: $(VENV)/with-wheel
	BIN=$(BIN) FUSEO1_CUDA=$(WHEEL_CUDA) .ci/make_wheel dist

clean:
	rm -rf build dist .venv .work fuseo1_kernels/backends/*.so *.egg-info

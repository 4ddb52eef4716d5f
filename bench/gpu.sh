#!/usr/bin/env bash
# On a machine with a GPU, torch, numpy, triton, nvcc, compute-sanitizer, pybind11, cmake, ninja and pytest, and no
# network: builds in place, runs the GPU tests, also under compute-sanitizer, and the benches, in 8 minutes;
# bench/gpu_stages.py says how. Whole merges need more packages: without them those stages are not run, and the last
# line says so. The exit status is 1 if a stage failed or had no time left, else 0.
#
#   bench/gpu.sh [--quick] [--results DIR]
#
# Results go to bench/results/GPU.json and .md, and to $OUT if that is set. FUSEO1_COMMIT names the commit where there is
# no git; PYTHON the interpreter; CUDAARCHS what to build for (default: the GPU that is here).
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
exec "${PYTHON:-python3}" bench/gpu_stages.py "$@"

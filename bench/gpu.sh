#!/usr/bin/env bash
# On a machine with a GPU, torch, numpy, triton, nvcc, compute-sanitizer, pybind11, cmake, ninja and pytest, and no
# network: builds in place, runs the GPU tests, the benches and compute-sanitizer, in less than ten minutes, and reports
# after each stage; bench/gpu_stages.py says how. Whole merges need more packages: without them those stages are not
# run, and the last line says so. The exit status is 1 if a stage failed or could not begin, else 0.
#
#   bench/gpu.sh [--quick] [--results DIR] [--seconds N] [--stages NAME,...]
#   bench/gpu.sh --compile 90-real     the kernels alone, without a GPU, into build/gpu-kernels: to be carried there
#
# Results go to bench/results/GPU.json and .md, and to $OUT if that is set. FUSEO1_COMMIT names the commit where there is
# no git; PYTHON the interpreter; CUDAARCHS what to build for (default: the GPU that is here).
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
exec "${PYTHON:-python3}" bench/gpu_stages.py "$@"

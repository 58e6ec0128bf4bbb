#!/usr/bin/env bash
# Everything that needs a GPU, in one call: builds the kernels in place for the GPU that is here, runs the tests that
# need it, checks the kernels with compute-sanitizer, and measures them. No network. Needs nvcc, CMake, ninja and a Python
# with pybind11, PyTorch, CuPy, nibabel, pydantic, rich, ml_dtypes, pytest and hypothesis (SciPy for rows beside it).
#
# Usage: [PYTHON=python3] [OUT=benchmarks/results] benchmarks/gpu.sh [build|test|bench|memcheck|racecheck|initcheck|synccheck]...
# Without arguments all of them. A part that fails does not stop the next; the exit status is 1 if any did.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
mkdir -p "$out" build
[ $# -gt 0 ] || set -- build test bench memcheck racecheck initcheck synccheck
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 SCTRT_REQUIRE_CUDA=1

build() {
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .) || return
  # Line numbers, for compute-sanitizer; they do not change the code.
  SCTRT_CUDA=ON CMAKE_ARGS="-DCMAKE_CUDA_ARCHITECTURES=${capability:?no GPU}-real -DCMAKE_CUDA_FLAGS=-lineinfo" \
    "$python" setup.py -q build_ext --inplace &&
    "$python" -c 'from sctrt import ops; print(ops.build_info()); assert ops.cuda_device_count(), "no GPU to be used"'
}

run_tests() {
  local files
  mapfile -t files < <(grep -l 'mark\.gpu' tests/test_*.py) # the others may need what is not here
  "$python" -m pytest --tb=short -m gpu --continue-on-collection-errors "${files[@]}"
}

# One allocation an array, so that its end is seen (CuPy's: tests/conftest.py); the shim runs on no GPU. Only our
# kernels are looked at, but by initcheck, which must see what others write.
sanitize() {
  local options=(--tool "$1" --error-exitcode 9 --target-processes application-only --launch-timeout 300)
  if ! command -v compute-sanitizer; then
    echo "compute-sanitizer is not on PATH; it comes with the CUDA toolkit"
    return 1
  fi
  [ "$1" = initcheck ] || options+=(--kernel-name kns=sctrt)
  [ "$1" != memcheck ] || options+=(--report-api-errors no --padding 64)
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer "${options[@]}" \
    "$python" -m pytest -q --tb=short -m gpu -k "not shim" tests/test_ops_*.py
}

measure() {
  "$python" benchmarks/kernels.py --device cuda --json "$out/kernels_cuda.json"
}

run_part() {
  case $1 in
    build) build ;;
    test) run_tests ;;
    memcheck | racecheck | initcheck | synccheck) sanitize "$1" ;;
    bench) measure ;;
    *)
      echo "unknown part $1: see the head of $0"
      return 2
      ;;
  esac
}

main() {
  local part start status failed=0 summary=()
  nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader || echo "nvidia-smi does not answer"
  for part in "$@"; do
    echo "=== $part"
    start=$SECONDS
    run_part "$part"
    status=$?
    [ $status -eq 0 ] || failed=1
    summary+=("$(printf '%-10s %-6s %4d s' "$part" "$([ $status -eq 0 ] && echo ok || echo "FAILED ($status)")" $((SECONDS - start)))")
  done
  echo "=== summary"
  printf '%s\n' "${summary[@]}"
  return $failed
}

main "$@" 2>&1 | tee "${OUT:-build}/gpu.log"

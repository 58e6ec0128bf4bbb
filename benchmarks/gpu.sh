#!/usr/bin/env bash
# Everything that needs a GPU, in one call: builds the kernels in place for the GPU that is here, builds engines for it,
# runs the tests that need it, times whole bodies and the kernels, and checks the kernels with compute-sanitizer. No
# network. Needs nvcc, CMake, ninja and a Python with pybind11, PyTorch, CuPy, ONNX, onnxscript, safetensors, nibabel,
# pydantic, rich, typer, matplotlib, scikit-image, SciPy, ml_dtypes, pytest and hypothesis; and TensorRT or TensorRT-RTX,
# whichever can be had. `build` and `bench` alone need only nvcc, CMake, ninja, pybind11, PyTorch, CuPy and rich.
#
# Usage: [PYTHON=python3] [OUT=benchmarks/results] [LIMIT=seconds] benchmarks/gpu.sh \
#          [build|engines|test|pipeline|bench|suite|memcheck|racecheck|initcheck|synccheck]...
# Without arguments all of them, the most telling first. A part that fails, or hangs until its time is up, does not stop
# the next; with LIMIT no part starts or goes on after so long. The exit status is 1 if any part failed.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
out=${OUT:-benchmarks/results}
mkdir -p "$out" build
[ $# -gt 0 ] || set -- build engines test pipeline bench suite memcheck racecheck initcheck synccheck
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 SCTRT_REQUIRE_CUDA=1
export SCTRT_ENGINE_DIR=${SCTRT_ENGINE_DIR:-$PWD/build/engines}
vq_f4=build/vq-f4.sctrt # random weights; as fast as trained ones

# Seconds that a part may take; each command of it is ended when they are over.
declare -A limits=([build]=180 [engines]=240 [test]=240 [pipeline]=520 [bench]=300 [suite]=560)
ends=0
limited() {
  local left=$((ends - SECONDS))
  if [ $left -le 0 ]; then
    echo "not run, the time is up: $*"
    return 124
  fi
  timeout --kill-after=10 $left "$@"
}

build() {
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .) || return
  # Line numbers, for compute-sanitizer; they do not change the code.
  SCTRT_CUDA=ON CMAKE_ARGS="-DCMAKE_CUDA_ARCHITECTURES=${capability:?no GPU}-real -DCMAKE_CUDA_FLAGS=-lineinfo" \
    limited "$python" setup.py -q build_ext --inplace &&
    "$python" -c 'from sctrt import ops; print(ops.build_info()); assert ops.cuda_device_count(), "no GPU to be used"'
}

make_vq_f4() {
  [ -d $vq_f4 ] || limited "$python" export/random_bundle.py $vq_f4 --vq-f4
}

# For the GPU that is here, each verified: the shipped model's for a body of 4 mm, vq-f4's for one of 1.5 mm.
build_engines() {
  local runtime precision failed=0
  limited "$python" benchmarks/rtx_accepts.py --json "$out/rtx_accepts.json"
  make_vq_f4 || failed=1
  for runtime in tensorrt-rtx tensorrt; do
    if ! "$python" -c "import ${runtime//-/_}"; then
      echo "$runtime is not here"
      continue
    fi
    limited "$python" -m sctrt.cli build-engine --runtime $runtime --shape 290,128,128 --precision fp16 || failed=1
    for precision in fp16 bf16 fp32; do
      limited "$python" -m sctrt.cli build-engine $vq_f4 --runtime $runtime --shape 700,400,400 \
        --precision $precision || failed=1
    done
  done
  return $failed
}

run_tests() {
  local files
  mapfile -t files < <(grep -l 'mark\.gpu' tests/test_*.py) # the others may need what is not here
  # Without the tests that play the GPU on the CPU: they run everywhere, and take long.
  limited "$python" -m pytest --tb=short -m gpu -k "not shim" --continue-on-collection-errors "${files[@]}"
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
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited compute-sanitizer "${options[@]}" \
    "$python" -m pytest -q --tb=short -m gpu -k "not shim" tests/test_ops_*.py
}

# The shipped model first: it takes a minute, and its weights are trained, so its accuracy counts.
time_pipeline() {
  local failed=0
  limited "$python" benchmarks/gpu_pipeline.py --shape 290,128,128 --only sctrt --repeat 5 --budget-s 90 \
    --json "$out/gpu_pipeline_shipped.json" || failed=1
  make_vq_f4 || return
  limited "$python" benchmarks/gpu_pipeline.py --model $vq_f4 --budget-s $((ends - SECONDS - 10)) \
    --json "$out/gpu_pipeline.json" || failed=1
  return $failed
}

measure() {
  limited "$python" benchmarks/kernels.py --device cuda --json "$out/kernels_cuda.json"
}

# What sctrt bench says of this GPU, within the time that is left.
run_suite() {
  limited "$python" -m sctrt.cli bench --device cuda --minutes $(((ends - SECONDS) * 9 / 600)) --json "$out/bench_cuda.json"
}

run_part() {
  case $1 in
    build) build ;;
    engines) build_engines ;;
    test) run_tests ;;
    pipeline) time_pipeline ;;
    bench) measure ;;
    suite) run_suite ;;
    memcheck | racecheck | initcheck | synccheck) sanitize "$1" ;;
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
    ends=$((start + ${limits[$part]:-400}))
    [ -z "${LIMIT:-}" ] || ends=$((ends < LIMIT ? ends : LIMIT))
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

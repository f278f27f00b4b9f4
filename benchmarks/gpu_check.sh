#!/usr/bin/env bash
# Builds fastnn on a machine with a GPU, tests it there and measures it: gpu_check.sh [build|test|sanitize|probe|bench]...
# Without arguments all of them, each within its share of eight minutes. Needs no network; torch with CUDA, CMake, ninja,
# pybind11, scikit-build-core and pytest must be installed. MNIST is taken from $FASTNN_DATA_DIR, where there is one.
# Writes to $OUT, by default build/gpu.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
out=${OUT:-build/gpu}
mkdir -p "$out"
export FASTNN_MIRRORS=${FASTNN_MIRRORS-} PATH=$PATH:/usr/local/cuda/bin
export PYTHONPATH=$PWD/python${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
failed=()

# stage <name> <lines> <seconds> <command...>: runs it with a limit, keeps its output, shows the last lines, notes a
# failure.
stage() {
  local name=$1 lines=$2 limit=$3 start=$SECONDS
  shift 3
  echo "== $name"
  timeout --kill-after=5 "$limit" "$@" 2>&1 | tee "$out/$name.log" | tail -n "$lines"
  local status=${PIPESTATUS[0]}
  [ "$status" -eq 0 ] || failed+=("$name (exit $status)")
  echo "-- $name: $((SECONDS - start)) s"
}

build() {
  "$python" -c 'import torch; assert torch.cuda.is_available(), "torch finds no GPU"; print(torch.__version__, torch.cuda.get_device_name())' &&
    cmake -S . -B build/gpu-build -G Ninja -DCMAKE_BUILD_TYPE=Release -DFASTNN_CUDA=ON \
      -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" -DPython_EXECUTABLE="$(command -v "$python")" &&
    cmake --build build/gpu-build && cmake --install build/gpu-build --prefix python &&
    "$python" -c 'import fastnn; from fastnn import _backend
print(fastnn.info()); why = _backend._device_reason(0); assert why is None, why'
}

# memcheck sees what is beyond an allocation: each tensor gets one of its own, with which nothing can be captured.
# Errors that the API returns are for the tests to judge.
sanitize() {
  local tests
  command -v compute-sanitizer || { echo "compute-sanitizer is not installed"; return 1; }
  mapfile -t tests <benchmarks/gpu_sanitize.txt
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 1 \
    --target-processes all "$python" -m pytest --all -q -x -m cuda -k "not step_graph" "${tests[@]}" &&
    compute-sanitizer --tool racecheck --error-exitcode 1 --target-processes all \
      "$python" -m pytest --all -q -x -m cuda "${tests[@]}"
}

probe() {
  nvcc -arch=sm_90 -std=c++17 -O3 -I csrc benchmarks/cluster_probe.cu -o "$out/cluster_probe" &&
    "$out/cluster_probe" >"$out/cluster_probe.txt" && tail -n 1 "$out/cluster_probe.txt" >"$out/cluster_probe.json" &&
    head -n -1 "$out/cluster_probe.txt"
}

for name in "${@:-build test sanitize probe bench}"; do
  for one in $name; do
    case $one in
      build) export -f build; export python; stage build 15 180 bash -c build ;;
      test) stage test 15 130 "$python" -m pytest -q -m cuda --maxfail=20 tests ;;
      sanitize) export -f sanitize; export python; stage sanitize 15 60 bash -c sanitize ;;
      probe) export -f probe; export out; stage probe 15 20 bash -c probe ;;
      bench) stage bench 200 90 "$python" -m benchmarks.gpu --seconds 70 --output "$out/gpu.json" ;;
      *) echo "unknown stage $one: expected build, test, sanitize, probe or bench" >&2; exit 2 ;;
    esac
  done
done
if [ ${#failed[@]} -gt 0 ]; then
  printf 'failed: %s\n' "${failed[@]}"
  exit 1
fi

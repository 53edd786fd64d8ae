#!/usr/bin/env bash
# A real vLLM on one GPU, FP8 in blocks, CUDA graphs, updated by a trainer while it generates; one command, no network.
#
#   bench/gpu_engine.sh [FILE.json]     default: build/results/gpu_engine.json; the engines' logs beside it
#
# WEIGHTCAST_PACKAGE   folder with libweightcast.so, libweightcast_ucx.so and weightcast; without it this tree is built
# VLLM_PACK            folder with vLLM packed for a machine without a network: core.tar.zst, zs/ (its decoder), ucx/;
#                      without it PYTHON has vLLM
# PYTHON               an interpreter with torch and safetensors (python3)
# ENGINES_AT_ONCE      how many engines start together (6 on a GPU, else 1)
#
# Each of two models runs with DeepGEMM's rounded scales (vLLM's own choice: linears are repaired at the switch) and without
# them (all is written as it lies), staged and in place, beside an engine that loaded the new weights itself. Without a GPU
# the same runs in BF16 on the CPU, staged and in place. It fails if a byte of an updated engine is not the fresh engine's.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
result=$(realpath -m "${1:-build/results/gpu_engine.json}")
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
mkdir -p "$(dirname "$result")" "$parts/results" "$parts/site"
python=${PYTHON:-python3}
if [ -z "${WEIGHTCAST_PACKAGE:-}" ]; then
  ./dev build
  export WEIGHTCAST_LIBRARY=$root/build/debug/plugin/libweightcast.so
else
  export WEIGHTCAST_LIBRARY=$(realpath "$WEIGHTCAST_PACKAGE")/libweightcast.so
fi
path=$parts/site:$root/bench/gpu_engine:$root/integrations/python
if [ -n "${VLLM_PACK:-}" ]; then
  mkdir "$parts/vllm"
  PYTHONPATH=$VLLM_PACK/zs "$python" - "$VLLM_PACK/core.tar.zst" "$parts/vllm" <<'PY'
import sys, tarfile, zstandard
with open(sys.argv[1], "rb") as packed:
    with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(packed) as stream:
        tarfile.open(fileobj=stream, mode="r|").extractall(sys.argv[2])
PY
  path=$path:$parts/vllm
  export LD_LIBRARY_PATH=$(realpath "$VLLM_PACK")/ucx/libucx/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
# The plug-in is found by its entry point, as after `pip install`.
info=$parts/site/weightcast-0.dist-info
mkdir "$info"
printf 'Metadata-Version: 2.1\nName: weightcast\nVersion: 0\n' >"$info/METADATA"
printf '[vllm.general_plugins]\nweightcast = weightcast.vllm:register\n' >"$info/entry_points.txt"
export VLLM_USE_FLASHINFER_SAMPLER=0 VLLM_DEEP_GEMM_WARMUP=skip VLLM_NO_USAGE_STATS=1 HF_HUB_OFFLINE=1

gpu=
if nvidia-smi -L >/dev/null 2>&1; then
  gpu=--fp8
else
  export WEIGHTCAST_VLLM_CPU_PACKING=off VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1
fi
began=$SECONDS
"$python" bench/gpu_engine/checkpoints.py "$parts/checkpoints" $gpu
echo "checkpoints made ($((SECONDS - began)) s)"

running=0
# engine NAME E8M0 ARGUMENTS...: in the background, at most ENGINES_AT_ONCE of them.
engine() {
  local name=$1 e8m0=$2
  shift 2
  if ((running >= ${ENGINES_AT_ONCE:-$([ -n "$gpu" ] && echo 6 || echo 1)})); then wait -n || true; running=$((running - 1)); fi
  running=$((running + 1))
  (
    mkdir -p "$parts/cache/$name"
    export VLLM_CACHE_ROOT=$parts/cache/$name
    [ "$e8m0" = auto ] || export VLLM_USE_DEEP_GEMM_E8M0=$e8m0
    timeout 420 "$python" bench/gpu_engine/engine.py "$parts/checkpoints" "${name%%.*}" "$parts/results/$name.json" "$@" \
      >"${result%.json}.$name.log" 2>&1 || echo "FAILED: $name (exit code $?); ${result%.json}.$name.log"
  ) &
}
for model in ${MODELS:-qwen3 qwen3_moe}; do
  for e8m0 in auto ${gpu:+0}; do
    engine "$model.$e8m0.fresh" "$e8m0" --fresh
    for landing in ${LANDINGS:-staged in_place}; do
      engine "$model.$e8m0.$landing" "$e8m0" --landing "$landing"
    done
  done
done
wait
"$python" bench/gpu_engine/report.py "$parts/results" "$result" "$((SECONDS - began))"

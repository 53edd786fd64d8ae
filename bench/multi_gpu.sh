#!/usr/bin/env bash
# All that several GPUs of one host have to show, in one command of at most nine minutes and without a network: puts
# between every pair of GPUs, a pipeline from one to another, a relay, and whole updates from half of them to the other
# half. On one GPU both roles are on it; without any, the same runs in host memory, as far as it can.
#
#   bench/multi_gpu.sh [FILE.json]     default: build/results/multi_gpu.json; traces beside it
#
# WEIGHTCAST_PACKAGE names a folder with a build (libweightcast.so, libweightcast_ucx.so, weightcast and the *_bench);
# without it this tree is built. PYTHON names the interpreter (with NumPy, ml_dtypes and, for GPUs, torch).
# Settings of the GPUs stay as they are.
set -euo pipefail
cd "$(dirname "$0")/.."
result=$(realpath -m "${1:-build/results/multi_gpu.json}")
if [ -z "${WEIGHTCAST_PACKAGE:-}" ]; then
  ./dev build
  venv=${WEIGHTCAST_VENV:-.venv}
  python=${PYTHON:-$venv/bin/python}
  program=build/debug/plugin/weightcast
  export WEIGHTCAST_LIBRARY=$PWD/build/debug/plugin/libweightcast.so
else
  python=${PYTHON:-python3}
  program=$WEIGHTCAST_PACKAGE/weightcast
  export WEIGHTCAST_LIBRARY=$WEIGHTCAST_PACKAGE/libweightcast.so
fi
export PYTHONPATH=$PWD/integrations/python${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
mkdir -p "$(dirname "$result")"
began=$SECONDS

# run NAME SECONDS COMMAND...: what fails is named, and the rest still runs.
run() {
  local name=$1 seconds=$2
  shift 2
  echo "== $name ($((SECONDS - began)) s)"
  timeout "$seconds" "$@" || { echo "FAILED: $name (exit code $?)"; echo "$name" >>"$parts/failed"; }
}
skip() { echo "== $1: SKIPPED, $2"; }

half=$((gpus / 2))
if ((gpus >= 2)); then
  trainers=$(seq -s ' ' 0 $((half - 1)))
  servers=$(seq -s ' ' $half $((2 * half - 1)))
  memory_gb=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | sort -n | head -1 | awk '{print int($1 * 1.048576 / 1000)}')
  most_gb=$((half * (memory_gb - 20)))
elif ((gpus == 1)); then
  trainers=0 servers=0
  memory_gb=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | awk '{print int($1 * 1.048576 / 1000)}')
  most_gb=$(((memory_gb - 24) / 2))  # BF16, FP8 and its shadow beside each other
fi

if ((gpus == 0)); then
  skip "put between GPUs, pipeline" "no GPU: puts in host memory in their place"
  run fabric 120 "$program" bench fabric --json "$parts/fabric.json"
  run relay 60 "$program" bench relay --host --total-mib 256 --chunk-mib 4 --rounds 5 --json "$parts/relay.json"
  for layout in ep tp replicas; do
    run "update_$layout" 120 "$python" bench/multi_gpu/update.py --gb 0.2 --layout $layout --json "$parts/update_$layout.json"
  done
  run update_relay 120 "$python" bench/multi_gpu/update.py --gb 0.2 --layout replicas --relay --json "$parts/update_relay.json"
else
  last=$((gpus - 1))
  for source in $(seq 0 $last); do
    for target in $(seq 0 $last); do
      ((gpus > 1 && source == target)) && continue
      run "put_${source}_$target" 40 "$program" bench put --source-device "$source" --target-device "$target" \
        --json "$parts/put_${source}_$target.json"
    done
  done
  run pipeline 90 "$program" bench pipeline --rounds 5 --chunk-mib 64 --chunk-mib 256 --target-device "$last" \
    --trace "${result%.json}_trace" --json "$parts/pipeline.json"
  second=$((gpus > 2 ? 2 : last))
  run relay 60 "$program" bench relay --devices 0 "$last" "$second" --json "$parts/relay.json"
  for layout in ep tp; do
    run "update_$layout" 120 "$python" bench/multi_gpu/update.py --trainers $trainers --servers $servers --gb 16 \
      --versions 40 --layout $layout --json "$parts/update_$layout.json"
  done
  # One trainer, two replicas: put to both, or passed on by each to the other as the plan says.
  for way in replicas relay; do
    run "update_$way" 120 "$python" bench/multi_gpu/update.py --trainers 0 --servers "$last" "$second" --gb 16 \
      --layout replicas $([ $way = relay ] && echo --relay) --json "$parts/update_$way.json"
  done
  run update_most 180 "$python" bench/multi_gpu/update.py --trainers $trainers --servers $servers --gb $most_gb \
    --versions 3 --json "$parts/update_most.json"
fi
run report 60 "$python" bench/multi_gpu/report.py "$parts" "$program" "$result"
echo "$((SECONDS - began)) s; $result"
[ ! -e "$parts/failed" ]

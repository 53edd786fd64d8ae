#!/usr/bin/env bash
# Runs the tests of the kernels under NVIDIA's checkers, on a machine with a GPU: tests/sanitizers/gpu.sh [BUILD]
# memcheck: addresses; racecheck: shared memory; initcheck: device memory that nobody wrote.
set -euo pipefail
build=${1:-build/debug}
export WEIGHTCAST_SOURCE_ROOT=${WEIGHTCAST_SOURCE_ROOT:-$(cd "$(dirname "$0")/../.." && pwd)}
failed=0
for tool in memcheck racecheck initcheck; do
  echo "== $tool"
  compute-sanitizer --tool "$tool" --error-exitcode 9 "$build/tests/gpu_cast_test" || failed=1
done
exit $failed

#!/bin/sh
# search.sh TARGET CORPUS: lets libFuzzer search from the corpus; what it finds goes to a folder of its own.
set -eu
found=$(mktemp -d)
exec "$1" -max_total_time="${WEIGHTCAST_FUZZ_S:-60}" -timeout=10 -max_len=65536 -print_final_stats=1 \
  -artifact_prefix="$found/" "$found" "$2"

#!/bin/sh
# Fills the GPU table of docs/performance.md: four slices of at most ten minutes each, one JSON file each.
#
#   PYTHONPATH=src OUT=out/speed sh benchmarks/speed_gpu.sh          # all four
#   PYTHONPATH=src OUT=out/speed sh benchmarks/speed_gpu.sh base64-train   # or one
#
# The whole is meant to take at most 25 minutes on an H100. Without diffusers installed the networks here are measured
# alone, and the script says so. What a slice has measured before it ends is in its file.
set -eu
: "${OUT:=out/speed}"
mkdir -p "$OUT"
export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$OUT/compiled}"

slice() {
    name=$1
    shift
    if [ -n "${ONLY:-}" ] && [ "$ONLY" != "$name" ]; then
        return
    fi
    timeout 600 python benchmarks/throughput.py --device cuda --dtype bf16 --json "$OUT/$name.json" "$@" \
        >"$OUT/$name.md" || echo "$name: ended early; what it measured is in $OUT/$name.json" >&2
}

ONLY=${1:-}
slice base64-train --shape base64 --task train --steps 8
slice base64-denoise --shape base64 --task denoise --steps 10
slice sr256-train --shape sr256 --task train --steps 8
slice sr256-denoise --shape sr256 --task denoise --steps 10
cat "$OUT"/*.md

#!/usr/bin/env bash
# The runs behind docs/results.md: each method with three seeds, measured at 1, 2 and 4 steps, as JSON lines.
# Usage: scripts/results.sh [OUTPUT] [ITERATIONS OF sCM] [OF DMD] [OF rCM]
set -euo pipefail
cd "$(dirname "$0")/.."
output=${1:-runs/results}
declare -A iterations=([scm]=${2:-550} [dmd]=${3:-610} [rcm]=${4:-450})
fewstep=target/release/fewstep
cargo build --release --quiet
mkdir -p "$output"
measure() { "$fewstep" evaluate --model "$1" --steps "$2" --samples 1000 --seed 0 --json | sed "s/^{/{\"model\":\"$3\",/"; }
measure builtin:digits-teacher 50,4,2,1 teacher >"$output/teacher.jsonl"
for seed in 0 1 2; do
  for method in scm dmd rcm; do
    run=$output/$method-$seed
    "$fewstep" distill --preset "digits-$method" --seed "$seed" --output "$run" --resume \
      --set "distill.run.iterations=${iterations[$method]}" --set distill.ema=0.05
    measure "$run/model.safetensors" 4,2,1 "$method-$seed" >"$run.jsonl"
  done
done
cat "$output"/*.jsonl

#!/usr/bin/env bash
# Runs the coverage-guided fuzz targets with the stable toolchain: scripts/fuzz.sh [TARGET [SECONDS]]. What a target finds is
# left in fuzz/artifacts/TARGET/, what it learned in fuzz/corpus/TARGET/.
set -euo pipefail
cd "$(dirname "$0")/../fuzz"

targets=${1:-$(sed -n 's/^name = "\(.*\)"$/\1/p' Cargo.toml | grep -vx fuzz)}
seconds=${2:-20}
host=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=${CENTRA_CACHE:-$HOME/.cache/centra}/fuzz
export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"

cargo build --release --locked --target "$host" --bins
for target in $targets; do
    mkdir -p "artifacts/$target" "corpus/$target"
    echo "$target: $seconds s"
    "$CARGO_TARGET_DIR/$host/release/$target" -max_total_time="$seconds" -max_len=4096 -print_final_stats=1 \
        -artifact_prefix="artifacts/$target/" "corpus/$target" 2>&1 | grep -E '^(Done|stat::number|==|artifact|thread|SUMMARY)' || true
    if [ -n "$(ls "artifacts/$target")" ]; then
        echo "$target found something: fuzz/artifacts/$target" >&2
        exit 1
    fi
done

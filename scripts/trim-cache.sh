#!/usr/bin/env bash
# Keeps the cache of compiled code within bounds: each checkout, and each change, leaves its own intermediate results and
# test programs there, which nobody removes. Those written longest ago go first, and none that is younger than two hours; what is
# needed again is made again. What is compiled from registries stays: it is what takes long. A build may be under way beside:
# what vanishes meanwhile is nobody's mistake.
set -euo pipefail

GIB=$((1 << 30))
YOUNG_SECONDS=7200
release=$CARGO_TARGET_DIR/release

# trim BYTES: of the files or folders read, as "TIME PATH", the newest stay as long as they are within so many bytes.
trim() {
    local room=$1 changed path bytes now
    now=$(date +%s)
    sort -rn | while read -r changed path; do
        bytes=$(du -s --block-size=1 "$path" 2> /dev/null | cut -f 1) || true
        room=$((room - ${bytes:-0}))
        [ $room -ge 0 ] || [ $((now - ${changed%.*})) -lt $YOUNG_SECONDS ] || rm -rf "$path"
    done
}

[ -d "$release/incremental" ] || exit 0
{ find "$release/incremental" -mindepth 1 -maxdepth 1 -printf '%T@ %p\n' 2> /dev/null || true; } | trim $((12 * GIB))
{ find "$release/deps" -maxdepth 1 -type f -executable -size +4M ! -name '*.*' -printf '%T@ %p\n' 2> /dev/null || true; } | trim $((6 * GIB))

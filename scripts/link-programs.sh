#!/usr/bin/env bash
# Makes bin/: a link to each program, and `etcd`, the name under which Chainfire takes etcd's flags.
set -euo pipefail
cd "$(dirname "$0")/.."

mkdir -p bin
for program in chainfire chainfire-client sim bench; do
    ln -sfn "$CARGO_TARGET_DIR/release/$program" "bin/$program"
done
ln -sfn chainfire bin/etcd

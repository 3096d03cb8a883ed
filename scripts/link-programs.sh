#!/usr/bin/env bash
# Makes bin/: a link to each program; `etcd`, the name under which Chainfire takes etcd's flags; and `rocksdb_ldb`, under
# which it checks and repairs its database.
set -euo pipefail
cd "$(dirname "$0")/.."

mkdir -p bin
for program in chainfire chainfire-client flaredb flaredb-client placement-driver sim bench; do
    ln -sfn "$CARGO_TARGET_DIR/release/$program" "bin/$program"
done
ln -sfn chainfire bin/etcd
ln -sfn chainfire bin/rocksdb_ldb

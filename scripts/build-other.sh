#!/usr/bin/env bash
# Builds the `chainfire` of another revision, for tests of two versions side by side, and prints the folder it lies in:
#
#   scripts/build-other.sh REVISION
#
# It stays in the cache for the next time. Dependencies that are compiled already, with the versions and features that the other
# revision names too, are copied rather than compiled again.
set -euo pipefail
cd "$(dirname "$0")/.."

revision=$(git rev-parse --verify --short "$1^{commit}") || { echo "build-other: there is no revision $1" >&2; exit 1; }
cache=${CENTRA_CACHE:-$HOME/.cache/centra}
compiled=${CARGO_TARGET_DIR:-$cache/target}/release
folder=$cache/other/$revision
[ ! -x "$folder/chainfire" ] || { echo "$folder"; exit 0; }

echo "── building $revision in $folder" >&2
work=$folder.building
rm -rf "$work"
mkdir -p "$work/source" "$work/target/release/deps"
# What is made of this project's own crates bears the same names in both.
own=$(cargo metadata --no-deps --offline --format-version 1 | jq -r '.packages[].targets[].name' | tr - _ | sort -u | paste -sd '|')
for part in build .fingerprint; do
    [ ! -d "$compiled/$part" ] || cp -a "$compiled/$part" "$work/target/release/"
done
find "$compiled/deps" -maxdepth 1 -type f -regextype posix-extended -regex '.*/(lib[^/]*\.(rlib|rmeta|so)|[^/]*\.d)' \
    ! -regex ".*/(lib)?($own)-[0-9a-f]+\.[a-z]+" -exec cp -a -t "$work/target/release/deps" {} + 2> /dev/null || true
git archive "$revision" | tar xm -C "$work/source"
(cd "$work/source" && CARGO_TARGET_DIR=$work/target cargo build --release --locked --quiet -p chainfire --bin chainfire) >&2
mkdir -p "$folder"
mv "$work/target/release/chainfire" "$folder/"
rm -rf "$work"
echo "$folder"

#!/usr/bin/env bash
# Prints what the package is made of, as CycloneDX 1.5 (JSON): every crate that is linked into one of its programs, with
# version, licence and the checksum that Cargo.lock holds. RocksDB's C++ sources come in the crate rust-librocksdb-sys.
#
#   scripts/sbom.sh CRATE VERSION
set -euo pipefail
cd "$(dirname "$0")/.."

crate=$1 version=$2
checksums=$(awk '
    /^name = /     { gsub(/"/, "", $3); name = $3 }
    /^version = /  { gsub(/"/, "", $3); version = $3 }
    /^checksum = / { gsub(/"/, "", $3); printf "%s %s %s\n", name, version, $3 }' Cargo.lock | jq -R -n '
    [inputs | split(" ") | { key: "\(.[0]) \(.[1])", value: .[2] }] | from_entries')

# NAME vVERSION (PATH, for our own crates)|LICENCE
cargo tree --offline --locked --edges normal,build --package chainfire --package flaredb --package placement --package cli \
    --prefix none --format '{p}|{l}' 2> /dev/null \
    | sed -E 's/ \(\*\)$//; s/ \((\/|proc-macro)[^)]*\)//g' | LC_ALL=C sort -u | jq -R -n --arg crate "$crate" --arg version "$version" \
    --arg time "$(date -u -d "@${SOURCE_DATE_EPOCH:-0}" +%FT%TZ)" --argjson checksums "$checksums" '
    {
        bomFormat: "CycloneDX",
        specVersion: "1.5",
        version: 1,
        metadata: {
            timestamp: $time,
            component: { type: "application", name: $crate, version: $version, "bom-ref": "\($crate)@\($version)" }
        },
        components: [
            inputs | select(test("^[^ ]+ v[^ |]+\\|")) | capture("^(?<name>[^ ]+) v(?<version>[^ |]+)\\|(?<licence>.*)$")
            | "pkg:cargo/\(.name)@\(.version)" as $purl
            | {
                type: "library", name, version, purl: $purl, "bom-ref": $purl,
                licenses: (if .licence == "" then [] else [{ expression: (.licence | gsub("/"; " OR ")) }] end),
                hashes: ($checksums["\(.name) \(.version)"] as $sum | if $sum then [{ alg: "SHA-256", content: $sum }] else [] end)
            }
        ]
    }'

#!/usr/bin/env bash
# All that must hold, in stages; each is run whatever became of the others. The last line counts tests and stages.
set -uo pipefail
cd "$(dirname "$0")/.."

SEEDS=${SEEDS:-0..2000}
REGION_SEEDS=${REGION_SEEDS:-0..450}
# A version to run beside this one. Dependencies were compiled for it as they are now, so that it takes two minutes; `make torture
# ROWS=16` has the oldest one.
EARLIER=90d0bde
TOOLS=${CENTRA_CACHE:-$HOME/.cache/centra}/tools/bin
passed=0 failed=0 skipped=0
output=$(mktemp)
trap 'rm -f "$output"' EXIT

# stage NAME COMMAND…: runs it, says how long it took, and counts it as one test.
stage() {
    local name=$1 begun=$SECONDS
    shift
    echo "── $name"
    if "$@"; then
        passed=$((passed + 1))
        echo "── $name: passed in $((SECONDS - begun)) s"
    else
        failed=$((failed + 1))
        echo "── $name: FAILED after $((SECONDS - begun)) s"
    fi
}

# Names the files; `make fmt` repairs them.
formatting() { cargo fmt --all --check -- --files-with-diff; }

lints() { cargo clippy --release --locked --workspace --all-targets --quiet -- -D warnings; }

# They have a workspace of their own, which the other stages do not see.
fuzz_targets() { cargo check --release --locked --manifest-path fuzz/Cargo.toml --bins --quiet; }

dependencies() { "$TOOLS/cargo-deny" --log-level error check --hide-inclusion-graph licenses bans sources; }

# The database is fetched by git; a machine without a way to it skips this stage and says so.
advisories() {
    if ! timeout 60 "$TOOLS/cargo-deny" --log-level off fetch db > /dev/null 2>&1; then
        echo "the advisory database cannot be reached from here: skipped"
        return 0
    fi
    "$TOOLS/cargo-deny" --log-level error --offline check --hide-inclusion-graph advisories
}

# Each test counts by itself; the stage counts too, so that a test program that does not compile is a failure.
tests() {
    cargo test --release --locked --workspace --no-fail-fast 2>&1 | tee "$output" | grep -vE '^(running 0|test result: ok. 0 passed|test .* ok$|$)'
    local outcome=${PIPESTATUS[0]}
    local sums
    sums=$(awk '/^test result:/ { p += $4; f += $6 } END { print p + 0, f + 0 }' "$output")
    passed=$((passed + ${sums% *}))
    failed=$((failed + ${sums#* }))
    # What cannot run on this machine says so, and why, in a line of its own.
    skipped=$((skipped + $(grep -c '^SKIPPED' "$output" || true)))
    return "$outcome"
}

programs() { cargo build --release --locked --workspace --bins --quiet && scripts/link-programs.sh; }

# In a network of its own, where nobody else has its ports. Its last word is that all went as it should.
demo() {
    local in_a_network='ip link set lo up && exec scripts/demo.sh --once "$@"'
    if unshare --map-root-user --net sh -c "$in_a_network" sh "$@" > "$output" 2>&1 && tail -n 1 "$output" | grep -q 'Done\.'; then
        return 0
    fi
    cat "$output"
    return 1
}

# An earlier version, for the tests of two side by side; they say SKIPPED where a shallow clone lacks it.
earlier_version() {
    git rev-parse --quiet --verify "$EARLIER^{commit}" > /dev/null || return 0
    CENTRA_OTHER_BIN=$(scripts/build-other.sh "$EARLIER") && export CENTRA_OTHER_BIN
}

seeds() { bin/sim --seeds "$SEEDS"; }

region_seeds() { bin/sim regions --seeds "$REGION_SEEDS"; }

stage "formatting" formatting
stage "dependencies: licences, bans, sources" dependencies
stage "dependencies: advisories" advisories
stage "lints" lints
stage "fuzz targets" fuzz_targets
stage "programs" programs
stage "earlier version" earlier_version
stage "tests" tests
stage "demo" demo
stage "demo under TLS" demo --tls
stage "alert rules" scripts/check-alerts.sh
stage "units" scripts/check-units.sh
stage "package" scripts/check-package.sh
stage "torture's count" scripts/check-torture.sh
stage "simulator, seeds $SEEDS" seeds
stage "simulator of regions, seeds $REGION_SEEDS" region_seeds

echo "all stages took $SECONDS s"
[ $skipped = 0 ] || echo "$skipped could not run on this machine: see SKIPPED above"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]

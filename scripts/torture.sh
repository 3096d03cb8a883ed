#!/usr/bin/env bash
# The faults of the reliability table with real processes, as often as the table asks: hours, or days for all of it.
#
#   scripts/torture.sh                    every row with the table's count
#   scripts/torture.sh 8 14 T3            these rows
#   scripts/torture.sh fuzz               the fuzz targets, half a minute each
#   scripts/torture.sh T3s 1s             a hundred thousand seeds of each of the simulator's worlds
#   COUNT=20 scripts/torture.sh           every row with this count
#   OTHER=REVISION scripts/torture.sh 16  two versions side by side: this checkout's and that revision's; the last tag by
#                                         default, or else the oldest one that promises to be compatible (OLDEST).
#                                         CENTRA_OTHER_BIN=FOLDER names one that is built already.
#
# A row is a set of tests. Some are told in CENTRA_RUNS how many faults to make, and say in lines `done: N` how many they have
# made; the others make as many in every run. All are run again until there were enough faults. A test that fails ends its part
# of the row, and so does one that has made none, one that does not say how many, or one that says it cannot run here; what it
# printed stays in a file that is named at the end. Ends with a table `row | fault | done/failed/skipped`; the exit code says
# whether all was done.
#
# Row 10 kills a receiver at drawn moments; `make test` kills it at every step of the exchange of states, in
# crates/storage/tests/engine_store/replacement.rs.
set -uo pipefail
cd "$(dirname "$0")/.."

COUNT=${COUNT:-}
FUZZ_SECONDS=30
OLDEST=9c0a945
output=$(mktemp -d -t chainfire-torture-XXXXXX)
table=()
failures=0 skips=0
declare -A programs

# row NUMBER COUNT FAULT PART…: a part is PROGRAM:FILTER:counts or PROGRAM:FILTER:FAULTS-PER-RUN; parts share the count.
row() {
    local number=$1 count=${COUNT:-$2} fault=$3 done=0 failed=0 skipped=0 part
    shift 3
    wanted "$number" || return 0
    local share=$(((count + $# - 1) / $#))
    for part in "$@"; do
        local program=${part%%:*} filter=${part#*:} each=${part##*:}
        filter=${filter%:*}
        echo "── row $number, $fault: $filter, $share times"
        local so_far=0 became
        while [ $so_far -lt $share ]; do
            became=$(run "$number" "$program" "$filter" "$each" $((share - so_far)))
            case $became in
                [1-9]*) so_far=$((so_far + became)) ;;
                skipped) skipped=$((skipped + share - so_far)) && break ;;
                *) failed=$((failed + 1)) && break ;;
            esac
        done
        done=$((done + so_far))
    done
    failures=$((failures + failed)) skips=$((skips + skipped))
    table+=("$(printf '%3s | %-58s | %s/%s/%s' "$number" "$fault" "$done" "$failed" "$skipped")")
}

# seeds NAME WORLD FAULT: as many seeds of the simulator as the table wants, or COUNT.
seeds() {
    local count=${COUNT:-100000} log=$output/seeds-$1.log outcome=0/1/0
    wanted "$1" || return 0
    echo "── row $1, $3: $count seeds"
    # shellcheck disable=SC2086  # no world is no word
    if bin/sim $2 --seeds "0..$count" > "$log" 2>&1; then
        outcome=$count/0/0
    else
        failures=$((failures + 1)) && tail -5 "$log" >&2
    fi
    table+=("$(printf '%3s | %-58s | %s' "$1" "$3" "$outcome")")
}

wanted() {
    [ ${#rows[@]} = 0 ] && return 0
    local asked
    for asked in "${rows[@]}"; do [ "$asked" = "$1" ] && return 0; done
    return 1
}

# run ROW PROGRAM FILTER EACH MISSING: prints what became of it, the number of faults that were made, `failed` or `skipped`, and
# the rest as errors. A filter that names no test is a failure, too; tests that cannot run here say SKIPPED and pass.
run() {
    local log=$output/row-$1-${3//:/-}.log made=$4 why=''
    unset CENTRA_RUNS
    [ "$4" = counts ] && export CENTRA_RUNS=$5
    if ! "${programs[$2]}" "$3" > "$log" 2>&1 || ! grep -q '^test result: ok. [1-9]' "$log"; then
        why='it does not pass'
    elif grep '^SKIPPED' "$log" >&2; then
        echo skipped
        return
    elif [ "$4" = counts ]; then
        made=$(awk '/^done: [0-9]+$/ { said = 1; sum += $2 } END { if (said) print sum }' "$log")
        [ -n "$made" ] || why='the test does not say how much it did'
        [ "$made" != 0 ] || why='the test did nothing of it'
    fi
    if [ -n "$why" ]; then
        { echo "   FAILED, $why: $log" && tail -5 "$log"; } >&2
        echo failed
    else
        grep '^figure:' "$log" >&2
        rm -f "$log"
        echo "$made"
    fi
}

# Where cargo has put the test programs.
build() {
    local line
    while read -r line; do
        case $line in
            *'tests/processes/main.rs ('*) programs[processes]=$(between "$line") ;;
            *'tests/runbook/main.rs ('*) programs[runbook]=$(between "$line") ;;
            *'tests/log_store/main.rs ('*) programs[log_store]=$(between "$line") ;;
            *'tests/flaredb/main.rs ('*) programs[flaredb]=$(between "$line") ;;
        esac
    done < <(cargo test --release --locked --no-run --workspace --test processes --test runbook --test log_store --test flaredb 2>&1 | grep Executable)
    [ ${#programs[@]} = 4 ] || { echo "torture: the tests do not compile: cargo test --release --no-run --workspace" >&2; exit 1; }
}

# The program of another revision. A shallow clone may lack the oldest one: its part is then skipped.
build_other() {
    local revision=${OTHER:-$(git describe --tags --abbrev=0 2>/dev/null || echo $OLDEST)}
    git rev-parse --quiet --verify "$revision^{commit}" > /dev/null || [ -n "${OTHER:-}" ] || return 0
    CENTRA_OTHER_BIN=$(scripts/build-other.sh "$revision") || exit 1
    export CENTRA_OTHER_BIN
}

between() {
    local path=${1##*(}
    path=${path%)*}
    [[ $path = /* ]] || path=$PWD/$path
    echo "$path"
}

rows=("$@")
build
row 2 2000 "power loss: SIGKILL to all, and what was not synced is gone" processes:power::three_nodes_without:counts
row 3 100 "SIGKILL, SIGSTOP, restart under real clients" processes:durability::three_nodes_killed:counts \
    processes:linearizable::clients_see_one_order:3
row 5 1000 "bytes flipped, cut off, removed in log and state" processes:lost_logs::a_flipped_byte:1 \
    processes:lost_logs::a_truncated_log:1 processes:lost_logs::a_removed_log:1 \
    processes:healing::a_flipped_byte:8 processes:healing::a_lost_current_file:1 processes:healing::damage_of_any:counts \
    processes:in_flight:counts
row 6 600 "EIO, ENOSPC, short write, fsync error at every call" processes:disk_faults:counts \
    processes:power::a_single_node_whose:counts log_store:faults:200
row 7 1000 "SIGSTOP, and SIGKILL between" processes:linearizable::clients_see_one_order:3
row 8 500 "partitions: majority, ring, bridge, one-way, flapping" runbook:partitions::a_minority:counts \
    runbook:partitions::a_ring:counts runbook:partitions::a_bridge:counts runbook:partitions::one_who:counts \
    runbook:partitions::a_flapping:counts
row 9 500 "members added, removed, promoted, replaced; wiped disks" processes:changing::changes:counts \
    processes:changing::replacements:counts processes:membership:4 processes:lost_logs::a_wiped:2 \
    processes:lost_logs::a_cloned:1
row 10 1000 "snapshots installed, the receiver killed at any moment" processes:catch_up::a_receiver:counts \
    processes:catch_up::a_node_that_missed:1 processes:catch_up::open_watches:counts
row 13 100 "a full disk" processes:full_disk::a_full_disk:counts processes:full_disk::a_full_minority:2
row 14 1000 "SIGKILL to the leader; beside etcd: make bench (failover)" processes:leadership::a_killed_leader:counts
row 15 100 "a leader whose disk stands still or is slow; 10 % loss" processes:stalled_disk::a_leader_with_a_stalled:1 \
    processes:stalled_disk::a_leader_with_a_slow:1 processes:lossy:counts
if wanted 16 && [ -z "${CENTRA_OTHER_BIN:-}" ]; then build_other; fi
row 16 100 "rolling upgrade, mixed versions, downgrade" processes:versions::two_versions:counts
row 16b 100 "rolling restarts of one version; files of a later version" processes:rolling:3 processes:versions::what_a_later:2
row 17 200 "backups killed midway" processes:backup::a_killed_backup:counts
row T3 500 "SIGKILL to stores while regions split, merge and move" flaredb:splits::regions_split:counts \
    flaredb:merges::small_regions:counts flaredb:moves::replicas_move:counts flaredb:receiving:counts \
    flaredb:any_order:counts
seeds T3s regions "FlareDB in the simulator: splits, merges, moves, power cuts"
seeds 1s '' "Chainfire in the simulator"
row T4 50 "wiped stores" flaredb:lost::stores_of_five:counts
row T5 50 "placement drivers killed, one and all; stores with them" flaredb:placement::the_placement_driver:1 \
    flaredb:raw::keys_flow:1 flaredb:raw::stores_that_restart:1
row T6 50 "a store id or address twice, a copied folder" flaredb:stores::a_second_store:1 \
    flaredb:stores::a_store_at_the:1 flaredb:stores::a_copied:1

if wanted fuzz; then
    echo "── every fuzz target, $FUZZ_SECONDS s each"
    if scripts/fuzz.sh '' "$FUZZ_SECONDS" > "$output/fuzz.log" 2>&1; then fuzzed=1/0/0; else fuzzed=0/1/0; fi
    [ $fuzzed = 1/0/0 ] || { failures=$((failures + 1)) && tail -5 "$output/fuzz.log" >&2; }
    table+=("$(printf '%3s | %-58s | %s' fuzz "decoders of what comes from network and disk" "$fuzzed")")
fi

echo
printf '%s\n' 'row | fault                                                      | done/failed/skipped' "${table[@]}"
[ "$failures$skips" = 00 ] ||
    { echo "$failures failed, $skips skipped; what they printed is in $output" >&2; exit 1; }
rm -rf "$output"

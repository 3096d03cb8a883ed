#!/usr/bin/env bash
# Chainfire beside etcd. Without a subcommand everything is measured, about an hour; `--quick` shows in ten minutes that
# everything runs.
set -euo pipefail
cd "$(dirname "$0")/.."

ETCD=$(scripts/fetch-etcd.sh)
export ETCD
case ${1:-} in
    compare | memory | open | failover | log | tls | report) exec bin/bench "$@" ;;
    --quick)
        bin/bench log --rounds 1 --seconds 1
        bin/bench failover --repetitions 3
        bin/bench memory --keys 100000
        bin/bench open --gigabytes 0.5 --starts 1
        bin/bench compare --quick
        ;;
    '')
        # One part that fails does not take the others' figures away.
        failed=()
        for part in compare log failover memory open; do bin/bench "$part" || failed+=("$part"); done
        [ ${#failed[@]} = 0 ] || { echo "bench: failed: ${failed[*]}" >&2; exit 1; }
        ;;
    *) echo "bench: --quick, or one of compare, memory, open, failover, log, tls, report with its options" >&2 && exit 2 ;;
esac

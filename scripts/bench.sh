#!/usr/bin/env bash
# Chainfire beside etcd, and what concerns us alone. Without a subcommand all of it is measured, some three hours;
# `--quick` shows in some minutes that it runs.
set -euo pipefail
cd "$(dirname "$0")/.."

ETCD=$(scripts/fetch-etcd.sh)
export ETCD
case ${1:-} in
    compare | memory | open | failover | log | tls | snapshot | regions | raw | replace | report) exec bin/bench "$@" ;;
    --quick)
        bin/bench log --rounds 1 --seconds 1
        bin/bench failover --repetitions 3
        bin/bench memory --keys 100000
        bin/bench open --gigabytes 0.5 --starts 1
        bin/bench compare --quick
        bin/bench raw --rounds 1 --seconds 1
        bin/bench regions --regions 200 --seconds 2
        bin/bench tls --rounds 1 --seconds 1
        bin/bench replace --gib 0.3 --region-mib 128 --seconds 5
        ;;
    '')
        # One part that fails does not take the others' figures away.
        failed=()
        for part in compare log failover memory open tls snapshot raw regions replace; do bin/bench "$part" || failed+=("$part"); done
        [ ${#failed[@]} = 0 ] || { echo "bench: failed: ${failed[*]}" >&2; exit 1; }
        ;;
    *) echo "bench: --quick, or one of compare, memory, open, failover, log, tls, snapshot, raw, regions, replace, report with its options" >&2 && exit 2 ;;
esac

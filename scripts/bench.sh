#!/usr/bin/env bash
# Chainfire beside etcd, and what concerns us alone. Without a subcommand everything is measured, about two hours; `--quick` shows in ten minutes that
# everything runs.
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
        bin/bench tls --rounds 1 --seconds 1 --clients 64 --system chainfire
        bin/bench snapshot --gib 0.3
        bin/bench raw --rounds 1 --seconds 1
        bin/bench regions --regions 200 --seconds 2
        bin/bench replace --gib 0.2 --region-mib 64 --seconds 5
        ;;
    '')
        # One part that fails does not take the others' figures away.
        failed=()
        for part in compare log failover memory open 'tls --system chainfire' snapshot raw regions replace; do
            # Its options are words of their own.
            # shellcheck disable=SC2086
            bin/bench $part || failed+=("$part")
        done
        [ ${#failed[@]} = 0 ] || { echo "bench: failed: ${failed[*]}" >&2; exit 1; }
        ;;
    *) echo "bench: --quick, or one of compare, memory, open, failover, log, tls, snapshot, raw, regions, replace, report with its options" >&2 && exit 2 ;;
esac

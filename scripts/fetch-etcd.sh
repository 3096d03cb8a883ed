#!/usr/bin/env bash
# Prints the path of an etcd to compare with. $ETCD wins; then the one in the cache folder; else Debian's etcd-server of
# the suite named below is fetched from this machine's own Debian mirror and unpacked there. It is not installed: the
# package would start a server on port 2379. Where nothing can be fetched, the etcd on PATH is named.
set -euo pipefail
cd "$(dirname "$0")/.."

SUITE=trixie

if [ -n "${ETCD:-}" ]; then echo "$ETCD" && exit; fi

if command -v apt-get dpkg > /dev/null && folder=$(scripts/fetch-debian.sh etcd-server usr/bin/etcd "$SUITE"); then
    echo "$folder/usr/bin/etcd"
elif command -v etcd > /dev/null; then
    echo "etcd of $SUITE cannot be fetched: comparing with $(command -v etcd)" >&2
    command -v etcd
else
    echo "no etcd: name one with ETCD=path, or install Debian's etcd-server" >&2
    exit 1
fi

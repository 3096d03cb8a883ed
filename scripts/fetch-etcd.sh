#!/usr/bin/env bash
# Prints the path of an etcd to compare with. $ETCD wins; then the one in the cache folder; else Debian's etcd-server of
# the suite named below is fetched from this machine's own Debian mirror and unpacked there. It is not installed: the
# package would start a server on port 2379. Where nothing can be fetched, the etcd on PATH is named.
set -euo pipefail

SUITE=trixie
CACHE=${CENTRA_CACHE:-$HOME/.cache/centra}
program=$CACHE/etcd/usr/bin/etcd

if [ -n "${ETCD:-}" ]; then echo "$ETCD" && exit; fi
if [ -x "$program" ]; then echo "$program" && exit; fi

fetch() {
    local mirror keys=/usr/share/keyrings/debian-archive-keyring.gpg work
    mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' | awk '$1 == "Debian" && !/security/ { print $2; exit }')
    [ -n "$mirror" ] && [ -r "$keys" ] || return 1
    work=$(mktemp -d)
    mkdir -p "$work"/lists/partial "$work"/cache/archives/partial "$work"/parts
    echo "deb [signed-by=$keys] $mirror $SUITE main" > "$work/sources.list"
    local options=(-qq -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts="$work/parts"
        -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false)
    (cd "$work" && apt-get "${options[@]}" update && apt-get "${options[@]}" download etcd-server) >&2 || return 1
    mkdir -p "$CACHE/etcd"
    dpkg -x "$work"/etcd-server_*.deb "$CACHE/etcd"
    rm -rf "$work"
}

if command -v apt-get dpkg > /dev/null && fetch && [ -x "$program" ]; then
    echo "$program"
elif command -v etcd > /dev/null; then
    echo "etcd of $SUITE cannot be fetched: comparing with $(command -v etcd)" >&2
    command -v etcd
else
    echo "no etcd: name one with ETCD=path, or install Debian's etcd-server" >&2
    exit 1
fi

#!/usr/bin/env bash
# The units are understood by systemd and as narrow as they are meant to be: exposure of at most 1.5 for each service. A
# unit whose hardening is taken out must not pass.
set -euo pipefail
cd "$(dirname "$0")/.."

EXPOSURE_MAX=15 # tenths
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What systemd says of units in a folder; of others that these pull in it may say what it likes.
complaints() {
    local names
    names=$(cd "$1" && printf '%s\n' *.service | paste -sd '|')
    systemd-analyze verify --man=no "$1"/*.{service,timer} 2>&1 | grep -E "^($1/|($names):)" || true
}

# What the units start is not installed here.
mkdir "$work/units" "$work/wrong"
shopt -s nullglob
for unit in packaging/systemd/*.{service,timer}; do
    sed -E 's,^(ExecStart(Pre|Post)?=[-+!@]*)/usr/bin/[^ ]+,\1/bin/true,' "$unit" > "$work/units/${unit##*/}"
done
said=$(complaints "$work/units")
if [ -n "$said" ]; then echo "$said" >&2 && exit 1; fi
# A drop-in is looked at with the unit that it is for: UNIT-shared-host.conf, or Chainfire's.
mkdir "$work"/units/{chainfire,flaredb,placement-driver}.service.d
for drop_in in packaging/systemd/drop-ins/*.conf; do
    name=${drop_in##*/} unit=chainfire
    [ "$name" = shared-host.conf ] || unit=${name%-shared-host.conf}
    sed -E 's,^(ExecStartPre=)/usr/bin/[^ ]+,\1/bin/true,' "$drop_in" > "$work/units/$unit.service.d/$name"
    said=$(complaints "$work/units")
    if [ -n "$said" ]; then echo "$said" >&2 && exit 1; fi
done
sed 's/^LoadCredential=/LoadCredentail=/' packaging/systemd/drop-ins/shared-host.conf > "$work/units/chainfire.service.d/shared-host.conf"
[ -n "$(complaints "$work/units")" ] || { echo "a misspelt key in a drop-in passes" >&2; exit 1; }
sed 's/^WatchdogSec=/WatchdogSek=/' "$work/units/chainfire.service" > "$work/wrong/chainfire.service"
[ -n "$(complaints "$work/wrong")" ] || { echo "a misspelt key passes" >&2; exit 1; }

exposure() { systemd-analyze security --offline=true "$1" 2> /dev/null | sed -n 's/.*Overall exposure level for .*: \([0-9]*\)\.\([0-9]\).*/\1\2/p'; }

for unit in packaging/systemd/*.service; do
    tenths=$(exposure "$unit")
    echo "${unit##*/}: exposure $((tenths / 10)).$((tenths % 10))"
    [ "$tenths" -le "$EXPOSURE_MAX" ] || { echo "more than $((EXPOSURE_MAX / 10)).$((EXPOSURE_MAX % 10))" >&2; exit 1; }
done
grep -vE '^(SystemCall|Capability|Protect|Restrict)' packaging/systemd/chainfire.service > "$work/open.service"
[ "$(exposure "$work/open.service")" -gt "$EXPOSURE_MAX" ] || { echo "a unit without hardening passes" >&2; exit 1; }

if command -v systemd-sysusers > /dev/null; then
    mkdir -p "$work/root/etc"
    for user in chainfire flaredb; do
        systemd-sysusers --root="$work/root" "$PWD/packaging/sysusers.d/$user.conf"
        grep -q "^$user:" "$work/root/etc/passwd"
    done
fi

#!/usr/bin/env bash
# Alert rules are valid, say what their tests expect, and have a page each; the dashboards are valid JSON whose expressions
# Prometheus understands. A threshold that is moved must be noticed by the tests.
set -euo pipefail
cd "$(dirname "$0")/.."

tests=packaging/prometheus/tests
promtool=$(command -v promtool || true)
[ -n "$promtool" ] || promtool=$(scripts/fetch-debian.sh prometheus usr/bin/promtool)/usr/bin/promtool

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$tests" "$work/tests"

# check PROGRAM PAGES CHANGE…: its rules, its tests, its pages; and each change of a rule is noticed.
check() {
    local program=$1 pages=$2 rules=packaging/prometheus/$1.rules.yml change alerts alert page name
    shift 2
    "$promtool" check rules "$rules"
    "$promtool" test rules "$tests/$program.yml"
    for change in "$@"; do
        sed "$change" "$rules" > "$work/$program.rules.yml"
        if cmp -s "$rules" "$work/$program.rules.yml"; then echo "$change changes nothing" >&2 && exit 1; fi
        if "$promtool" test rules "$work/tests/$program.yml" > /dev/null 2>&1; then
            echo "the tests do not notice $change" >&2
            exit 1
        fi
    done
    echo "the tests notice rules that were changed"

    alerts=$(sed -n 's/^ *- alert: //p' "$rules")
    for alert in $alerts; do
        [ -s "docs/ops/alerts/$alert.md" ] || { echo "docs/ops/alerts/$alert.md is missing" >&2; exit 1; }
        grep -q "alerts/$alert\.md$" "$rules" || { echo "$alert has no runbook_url" >&2; exit 1; }
        grep -q "alertname: $alert$" "$tests/$program.yml" || { echo "$alert has no test" >&2; exit 1; }
    done
    for page in docs/ops/alerts/"$pages"*.md; do
        name=${page##*/}
        grep -qx "${name%.md}" <<< "$alerts" || { echo "$page is of no alert" >&2; exit 1; }
    done
    echo "$(wc -w <<< "$alerts") alerts of $program, each with a test and a page"
    dashboard "packaging/grafana/$program.json"
}

dashboard() {
    jq '[.panels[] | .targets[]?.expr] | map(gsub("\\$__rate_interval"; "5m") | gsub("\\$(job|pd|instance)"; "x"))
        | { groups: [{ name: "dashboard", rules: [to_entries[] | { record: "r\(.key)", expr: .value }] }] }' "$1" > "$work/dashboard.yml"
    "$promtool" check rules "$work/dashboard.yml"
    [ "$(jq '[.panels[].id] | length == (unique | length)' "$1")" = true ] || { echo "two panels of $1 have one id" >&2; exit 1; }
}

check chainfire Chainfire \
    's/> 0\.5$/> 5/' 's/for: 1m$/for: 9m/' 's/ < 0\.1$/ < 0.01/' 's/up{job="chainfire"} == 0/up{job="chainfier"} == 0/'
check flaredb FlareDB \
    's/flaredb_store_state == 0/flaredb_store_state == 1/' 's/pending_peers_total > 100/pending_peers_total > 1000/' \
    's/pending_peers_total > 100/pending_peers_total > 10/' 's/for: 10m$/for: 40m/' 's/for: 15m$/for: 60m/' 's/ < 0\.1$/ < 0.01/' \
    's/:p99 > 0\.5$/:p99 > 5/' 's/frozen_seconds > 30/frozen_seconds > 3/' 's/ or placement_tls_expiry_timestamp_seconds//' \
    's/ < 14 \* 86400/ < 7 * 86400/' 's/why!~"busy|limit/why!~"busy|never/' 's/heartbeat_age_seconds > 60/heartbeat_age_seconds > 600/' \
    's/ > 26 \* 3600/ > 27 * 3600/' 's/ or placement_scrub_interval_seconds > 0//' 's/(flaredb_scrub_interval_seconds > 0 or /(/' \
    's/ or placement_last_repair_time_seconds{what=~"log|state"}//' 's/what=~"log|state"/what=~".*"/' 's/ > 0) < 3600/ > 0) < 1800/'

# What is asked for is on one of the pages. Names of Prometheus, of node_exporter and of etcd are not ours.
known=$(sed -n 's/^| `\([a-z0-9_]*\)` .*/\1/p' docs/reference/metrics*.md)
for file in packaging/prometheus/flaredb.rules.yml packaging/grafana/flaredb.json; do
    for name in $(grep -oE '\b(flaredb|placement)_[a-z0-9_]+' "$file" | sort -u); do
        grep -qxE "${name%_bucket}|${name%_count}|$name" <<< "$known" || { echo "$file: no page has $name" >&2; exit 1; }
    done
done

#!/usr/bin/env bash
# Alert rules are valid, say what their tests expect, and have a page each; the dashboard is valid JSON whose expressions
# Prometheus understands. A threshold that is moved must be noticed by the tests.
set -euo pipefail
cd "$(dirname "$0")/.."

rules=packaging/prometheus/chainfire.rules.yml
tests=packaging/prometheus/tests
dashboard=packaging/grafana/chainfire.json
promtool=$(command -v promtool || true)
[ -n "$promtool" ] || promtool=$(scripts/fetch-debian.sh prometheus usr/bin/promtool)/usr/bin/promtool

"$promtool" check rules "$rules"
"$promtool" test rules "$tests"/*.yml

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/tests"
cp "$tests"/*.yml "$work/tests"
for change in 's/> 0\.5$/> 5/' 's/for: 1m$/for: 9m/' 's/ < 0\.1$/ < 0.01/' 's/up{job="chainfire"} == 0/up{job="chainfier"} == 0/'; do
    sed "$change" "$rules" > "$work/chainfire.rules.yml"
    if cmp -s "$rules" "$work/chainfire.rules.yml"; then echo "$change changes nothing" >&2 && exit 1; fi
    if "$promtool" test rules "$work"/tests/*.yml > /dev/null 2>&1; then
        echo "the tests do not notice $change" >&2
        exit 1
    fi
done
echo "the tests notice rules that were changed"

alerts=$(sed -n 's/^ *- alert: //p' "$rules")
for alert in $alerts; do
    [ -s "docs/ops/alerts/$alert.md" ] || { echo "docs/ops/alerts/$alert.md is missing" >&2; exit 1; }
    grep -q "alerts/$alert\.md$" "$rules" || { echo "$alert has no runbook_url" >&2; exit 1; }
    grep -q "alertname: $alert$" "$tests"/*.yml || { echo "$alert has no test" >&2; exit 1; }
done
for page in docs/ops/alerts/Chainfire*.md; do
    name=${page##*/}
    grep -qx "${name%.md}" <<< "$alerts" || { echo "$page is of no alert" >&2; exit 1; }
done
echo "$(wc -w <<< "$alerts") alerts, each with a test and a page"

jq '[.panels[] | .targets[]?.expr] | map(gsub("\\$__rate_interval"; "5m") | gsub("\\$(job|instance)"; "x"))
    | { groups: [{ name: "dashboard", rules: [to_entries[] | { record: "r\(.key)", expr: .value }] }] }' "$dashboard" > "$work/dashboard.yml"
"$promtool" check rules "$work/dashboard.yml"
[ "$(jq '[.panels[].id] | length == (unique | length)' "$dashboard")" = true ] || { echo "two panels have one id" >&2; exit 1; }

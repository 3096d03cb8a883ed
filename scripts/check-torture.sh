#!/usr/bin/env bash
# Whether scripts/torture.sh counts right: with a cargo that has built a test program that passes, fails, or cannot run here.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cat > "$scratch/cargo" <<END
#!/bin/sh
for name in processes runbook log_store flaredb; do
    echo "  Executable tests/\$name/main.rs ($scratch/tests)"
done
END
cat > "$scratch/tests" <<'END'
#!/bin/sh
case $OUTCOME in
    passes) echo 'figure: 1' ; echo 'test result: ok. 1 passed' ;;
    cannot) echo 'SKIPPED it: no disk' ; echo 'test result: ok. 1 passed' ;;
    none) echo 'test result: ok. 0 passed' ;;
    fails) echo 'test result: FAILED.' ; exit 101 ;;
esac
END
chmod +x "$scratch/cargo" "$scratch/tests"

# counts OUTCOME ROW FIGURES CODE: a row of the table ends with these figures, and torture with this exit code.
counts() {
    local code=0 said
    said=$(TMPDIR=$scratch PATH=$scratch:$PATH OUTCOME=$1 COUNT=6 scripts/torture.sh "$2" 2> /dev/null) || code=$?
    [[ $(tail -1 <<< "$said") = *" | $3" && $code = "$4" ]] ||
        { echo "torture: a test that $1, row $2: code $code, $said" >&2; exit 1; }
}

for row in 7 17 T4; do
    counts passes $row 6/0/0 0
    counts cannot $row 0/0/6 1
    counts none $row 0/1/0 1
    counts fails $row 0/1/0 1
done
echo "torture counts what was done, what failed and what was skipped"

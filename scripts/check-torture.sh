#!/usr/bin/env bash
# Whether scripts/torture.sh counts right: with a cargo that has built a test program that passes, fails, or cannot run here; that
# does less than it is asked for, nothing, or does not say how much.
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
cat > "$scratch/tests" <<END
#!/bin/sh
asked=\${CENTRA_RUNS:-0}
echo \$asked >> $scratch/asked
END
cat >> "$scratch/tests" <<'END'
passed='test result: ok. 1 passed'
case $OUTCOME in
    passes) echo "done: $asked"; echo 'figure: 1'; echo "$passed" ;;
    # Of no more than four, in two tests.
    lags) made=$((asked > 4 ? 4 : asked)); echo 'done: 1'; echo "done: $((made - 1))"; echo "$passed" ;;
    # The first time it does something.
    stops) echo "done: $((asked > 4 ? 4 : 0))"; echo "$passed" ;;
    idles) echo 'done: 0'; echo "$passed" ;;
    'says nothing') echo "$passed" ;;
    cannot) echo "done: $asked"; echo 'SKIPPED it: no disk'; echo "$passed" ;;
    'is none') echo 'test result: ok. 0 passed' ;;
    fails) echo "done: $asked"; echo 'test result: FAILED.'; exit 101 ;;
esac
END
chmod +x "$scratch/cargo" "$scratch/tests"

# counts OUTCOME ROW FIGURES CODE ASKED…: a row of the table ends with these figures, and torture with this exit code; each run
# was asked for so many faults, 0 for as many as the test makes by itself.
counts() {
    local outcome=$1 row=$2 figures=$3 expected=$4 code=0 said asked
    shift 4
    rm -f "$scratch/asked"
    said=$(TMPDIR=$scratch PATH=$scratch:$PATH OUTCOME=$outcome COUNT=6 scripts/torture.sh "$row" 2> /dev/null) || code=$?
    asked=$(paste -sd ' ' "$scratch/asked")
    [[ $(tail -1 <<< "$said") = *" | $figures" && $code = "$expected" && $asked = "$*" ]] ||
        { echo "torture: a test that $outcome, row $row: code $code, asked for $asked, $said" >&2; exit 1; }
}

# Three in every run, one in every run, as many as it is asked for.
counts passes 7 6/0/0 0 0 0
counts passes T5 6/0/0 0 0 0 0 0 0 0
counts passes 17 6/0/0 0 6
# Two versions side by side are not made up for by one; three and two in every run, of three each.
CENTRA_OTHER_BIN=$scratch counts passes 16 6/0/0 0 6
counts passes 16b 7/0/0 0 0 0 0
counts lags 17 6/0/0 0 6 2
counts stops 17 4/1/0 1 6 2
counts idles 17 0/1/0 1 6
counts 'says nothing' 17 0/1/0 1 6
for row in 7 17; do
    asked=$([ $row = 17 ] && echo 6 || echo 0)
    counts cannot $row 0/0/6 1 "$asked"
    counts 'is none' $row 0/1/0 1 "$asked"
    counts fails $row 0/1/0 1 "$asked"
done
echo "torture counts what was done, what failed and what was skipped"

#!/usr/bin/env bash
#
# Measures which lines of the pure core its unit tests reach.
#
# Run `coverage.sh --help` for usage and exit status.

set -euo pipefail

# Least part of the lines, in percent.
PERCENT_MIN=95

usage() {
    cat <<USAGE
Usage: scripts/coverage.sh

Runs the unit tests of the pure core (shared/src, agent/src/agent) under
cargo-tarpaulin, and prints each file with the lines that no test reaches.

The tests' own lines do not count, nor do those of invariants.rs, which only
simulation, model and fuzzing call.

Exit status: 0 if at least $PERCENT_MIN % of the lines are reached, 1 if not or if a
test fails, 2 for wrong usage, 3 without cargo-tarpaulin.
USAGE
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1:-} in
    --help) usage; exit 0 ;;
    '') ;;
    *) die_usage "unknown argument $1" ;;
esac

cd "$TOP"
cargo tarpaulin --version >/dev/null 2>&1 ||
    DIE_STATUS=3 die "cargo-tarpaulin is missing; cargo install --locked cargo-tarpaulin"
make_work

# The ptrace engine needs no LLVM tools, which few toolchains bring along. A traced process behaves
# differently, so the tests of the shell and of system calls are left out. A line of several
# statements may count as unreached.
status=0
cargo tarpaulin --engine ptrace --locked --skip-clean --target-dir target/coverage \
    --packages shared --packages agent --lib --out Stdout --fail-under "$PERCENT_MIN" \
    --include-files 'shared/src/*' --include-files 'agent/src/agent/*' \
    --exclude-files '*/tests.rs' --exclude-files '*/tests/*' \
    --exclude-files 'agent/src/agent/invariants.rs' \
    -- --skip sys:: --skip shell:: >"$WORK/log" 2>"$WORK/errors" || status=1
if ! grep --quiet ' coverage, ' "$WORK/log"; then
    cat "$WORK/log" "$WORK/errors" >&2
    exit 1
fi

# || path: 12, 14-16   and   || path: 30/31 +0.00%
sum=$(sed --quiet --regexp-extended 's/^([0-9.]+% coverage, [0-9]+\/[0-9]+ lines covered).*/\1/p' "$WORK/log")
echo '| File | Reached | Lines that no unit test reaches |'
echo '|---|---|---|'
awk '
    /^\|\| Uncovered Lines/ { is_list = 1; next }
    /^\|\| Tested\/Total/ { is_list = 0; next }
    $1 == "||" && NF > 2 {
        file = $2; sub(/:$/, "", file)
        rest = $0; sub(/^\|\| [^ ]+ /, "", rest)
        if (is_list) { lines[file] = rest } else { sub(/ .*/, "", rest); reached[file] = rest }
    }
    END { for (file in reached) print "| `" file "` | " reached[file] " | " lines[file] " |" }
' "$WORK/log" | sort
echo "$sum"
exit "$status"

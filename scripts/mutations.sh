#!/usr/bin/env bash
#
# Puts known defects into the programs, one at a time, and shows which tests find each.
#
# Run `mutations.sh --help` for usage, environment and exit status.

set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/mutations.sh [--write] [NAME...]

Each tests/mutations/NAME.patch puts a defect into agent/, host/ or shared/, and
names the tests that have to fail for it. In a copy of this tree below
target/mutations, this script first runs all of these tests without any defect.
Then it applies one patch after another, builds, runs the tests that the patch
names, and takes the patch back. It prints a line for each:

  caught  NAME  by TIER: TEST, ...

A tier is the model, the simulation, the process tier (tests/it) or a crate's
unit tests. A defect counts as caught by the model also where tests/model has
it beside the machines; unit tests are shown and do not count.

With --write the lines replace the table in docs/mutations.md. All patches take
about half an hour on two cores, most of it for builds.

What a patch begins with:

  a title, and below it what the defect is
  breaks: the promise that it breaks
  model: the defect of the same kind in tests/model/src/mutation.rs, if any
  caught-by: simulation, model TEST, it TEST, unit CRATE TEST, ...

Environment:
  MUTATIONS_RUNS  schedules that the simulation plays at most (200000)

Exit status: 0 when at least two of model, simulation and process tier have
caught each defect and every test that a patch names has failed; 1 otherwise,
also when a patch does not apply or compile, or a test is not there or fails
without a defect; 2 for wrong usage.
USAGE
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$TOP"
RUNS=${MUTATIONS_RUNS:-200000}
# Longest that the tests of one tier may take, in seconds. A test that waits in vain gives up after
# one minute.
LIMIT_S=600
export CARGO_TARGET_DIR=$TOP/target/mutations
TREE=$CARGO_TARGET_DIR/tree

declare -a NAMES=() FAILED=()
is_written=''
while [[ $# -gt 0 ]]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --write) is_written=1 ;;
        -*) usage >&2; exit 2 ;;
        *)
            [[ -f tests/mutations/$1.patch ]] || die_usage "there is no tests/mutations/$1.patch"
            NAMES+=("$1")
            ;;
    esac
    shift
done
if [[ -n $is_written && ${#NAMES[@]} -gt 0 ]]; then
    die_usage "the table is written of all mutations, so --write takes no names"
fi
if [[ ${#NAMES[@]} -eq 0 ]]; then
    for patch in tests/mutations/*.patch; do
        NAMES+=("$(basename "$patch" .patch)")
    done
fi

make_work

# A line of a patch's preamble: field NAME KEY.
field() {
    sed --quiet --expression='/^diff --git/q' --expression="s/^$2: //p" "tests/mutations/$1.patch"
}

# What has to catch a mutation, one item to a line.
items() {
    field "$1" caught-by | sed 's/, /\n/g'
}

# The tests of one tier among the items on standard input, one to a line.
tests_of() {
    sed --quiet "s/^$1 //p" | sort --unique
}

# Tiers among the items on standard input; unit tests with their crate.
tiers() {
    sed --regexp-extended 's/^(unit [a-z]+|[a-z]+).*/\1/' | sort --unique
}

# Copies the files that git would take. They get the time of the copy, so that cargo builds again
# what an interrupted run has built from a patched file.
copy_tree() {
    rm --recursive --force "$TREE"
    mkdir --parents "$TREE"
    local path
    git ls-files -z --cached --others --exclude-standard |
        while IFS= read -r -d '' path; do
            [[ ! -e $path ]] || printf '%s\0' "$path"
        done |
        tar --create --null --files-from=- | tar --extract --touch --directory="$TREE"
}

# Applies a patch to the copy, or takes it back with --reverse.
apply() {
    git apply "${@:2}" --whitespace=nowarn --directory=target/mutations/tree "tests/mutations/$1.patch" ||
        die "$1 does not apply"
}

# Builds what a tier needs, with its log in the file $2.
build() {
    (
        cd "$TREE"
        case $1 in
            simulation) cargo build --quiet --locked --profile model --package simulation ;;
            model) cargo test --quiet --locked --profile model --package model --no-run ;;
            it)
                cargo build --quiet --locked --package agent --package host &&
                    cargo test --quiet --locked --package tests --test it --no-run
                ;;
            unit\ *) cargo test --quiet --locked --package "${1#unit }" --lib --no-run ;;
            *) die "there is no tier $1" ;;
        esac
    ) >"$2" 2>&1 </dev/null
}

# Runs tests of a tier, with their log in the file $2: run TIER LOG TEST...
run() {
    local tier=$1 log=$2
    shift 2
    (
        cd "$TREE"
        case $tier in
            simulation) timeout "$LIMIT_S" "$CARGO_TARGET_DIR/model/simulation" --runs "$RUNS" ;;
            model) timeout "$LIMIT_S" cargo test --locked --profile model --package model --test exploration -- --exact "$@" ;;
            it) timeout "$LIMIT_S" cargo test --locked --package tests --test it -- --exact "$@" ;;
            unit\ *) timeout "$LIMIT_S" cargo test --locked --package "${tier#unit }" --lib -- --exact "$@" ;;
        esac
    ) >"$log" 2>&1 </dev/null
}

# Prints the outcome of a test from the log of its tier: ok, FAILED, or nothing.
outcome() {
    local log=$1 test=$2
    sed --quiet --regexp-extended "s/^test $test( - should panic)? \.\.\. (ok|FAILED)$/\2/p" "$log" | head --lines=1
}

# Every test that a patch names passes, and so does each defect of the model, which is one test.
run_without_defect() {
    headline "without a defect"
    local name tier log test
    for name in "${NAMES[@]}"; do
        items "$name"
        [[ -z $(field "$name" model) ]] || echo "model each_defect_is_found"
    done >"$WORK/items"
    tiers <"$WORK/items" >"$WORK/tiers"
    while read -r tier; do
        log=$WORK/log
        build "$tier" "$log" || { tail --lines=40 "$log" >&2; die "the $tier tests do not build"; }
        local -a tests=()
        mapfile -t tests < <(tests_of "$tier" <"$WORK/items")
        run "$tier" "$log" "${tests[@]}" || { tail --lines=60 "$log" >&2; die "$tier fails without a defect"; }
        for test in "${tests[@]}"; do
            [[ $(outcome "$log" "$test") == ok ]] || die "there is no test $test in tier $tier"
        done
        echo "ok: $tier, ${#tests[@]} tests"
    done <"$WORK/tiers"
}

# What the simulation says of the first schedule that failed, for a line of a table.
simulation_verdict() {
    local log=$1 seed text
    seed=$(sed --quiet --regexp-extended 's/^FAILED: replay with SEED=([0-9]+) .*/\1/p' "$log")
    [[ -n $seed ]] || return 1
    text=$(grep --after-context=1 --max-count=1 ' panicked at ' "$log" | tail --lines=1 | tr '|`' "/'")
    echo "seed $seed: ${text:0:90}"
}

# Runs one tier for one mutation; prints what caught it, or fails.
catch() {
    local name=$1 tier=$2 log=$WORK/log status=0 test caught=''
    local -a tests=()
    mapfile -t tests < <(items "$name" | tests_of "$tier")
    if ! build "$tier" "$log"; then
        tail --lines=40 "$log" >&2
        die "$name does not compile"
    fi
    run "$tier" "$log" "${tests[@]}" || status=$?
    if [[ $tier == simulation ]]; then
        simulation_verdict "$log"
        return
    fi
    for test in "${tests[@]}"; do
        if [[ $(outcome "$log" "$test") != FAILED ]]; then
            note "$name: $test does not fail (status $status)"
            return 1
        fi
        caught+=${caught:+, }"\`$test\`"
    done
    echo "$caught"
}

# One mutation: what caught it goes into the table's row and the line that is printed.
try_mutation() {
    local name=$1 tier text line='' missing='' count=0
    local -A caught=([model]='' [simulation]='' [it]='' [unit]='')
    [[ -z $(field "$name" model) ]] || caught[model]="\`$(field "$name" model)\` beside"
    apply "$name"
    while read -r tier; do
        if text=$(catch "$name" "$tier"); then
            caught[${tier%% *}]+=${caught[${tier%% *}]:+, }$text
        else
            missing+=" $tier"
        fi
    done < <(items "$name" | tiers)
    apply "$name" --reverse
    for tier in model simulation it unit; do
        [[ -n ${caught[$tier]} ]] || continue
        [[ $tier == unit ]] || count=$((count + 1))
        line+=${line:+; }"$tier: ${caught[$tier]}"
    done
    if [[ -n $missing || $count -lt 2 ]]; then
        FAILED+=("$name")
        printf 'MISSED  %-20s not by:%s; by %s\n' "$name" "${missing:- two tiers}" "${line:-nothing}"
    else
        printf 'caught  %-20s by %s\n' "$name" "$line"
    fi
    printf '| [%s](../tests/mutations/%s.patch): %s | %s | %s | %s | %s |\n' "$name" "$name" \
        "$(field "$name" breaks)" "${caught[model]}" "${caught[simulation]%%:*}" "${caught[it]}" \
        "${caught[unit]}" >>"$WORK/rows"
}

write_table() {
    {
        sed '/^<!-- What follows is written/q' docs/mutations.md
        printf '\n| Mutation, and the promise that it breaks | Model | Simulation | Process | Unit |\n|---|---|---|---|---|\n'
        cat "$WORK/rows"
        printf '\n%d mutations, each in turn in the sources; at most %d schedules of the simulation for each.\n' \
            "${#NAMES[@]}" "$RUNS"
    } >"$WORK/page"
    cp "$WORK/page" docs/mutations.md
}

copy_tree
run_without_defect
headline "${#NAMES[@]} mutations"
for name in "${NAMES[@]}"; do
    try_mutation "$name"
done
if [[ ${#FAILED[@]} -gt 0 ]]; then
    die "not caught as they should be: ${FAILED[*]}"
fi
[[ -z $is_written ]] || write_table
echo "ok: ${#NAMES[@]} mutations, each caught by two tiers at least"

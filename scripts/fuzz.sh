#!/usr/bin/env bash
#
# Fuzzes the parsers of untrusted bytes with libFuzzer and AddressSanitizer.
#
# Run `fuzz.sh --help` for usage, environment and exit status.

set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/fuzz.sh [TARGET|all] [--seconds N] [--minimise]

Runs a target of tests/fuzz, or each of them in turn (default all), with inputs
that libFuzzer chooses. It begins with the committed inputs (tests/fuzz/corpus)
and with those that earlier runs have found (target/fuzz/corpus), where new
ones go. An input that fails is written to target/fuzz/artifacts, and the last
lines say how to run it again.

  --seconds N  how long to fuzz each target (default 120)
  --minimise   afterwards leave out of target/fuzz/corpus what adds nothing
               (cargo fuzz cmin), and replace the committed inputs that have a
               digest for a name by some short ones of what is left, which
               reach code that those with a word for a name do not

Needs a nightly toolchain and cargo-fuzz, and says what is missing.

Environment:
  FUZZ_TOOLCHAIN  the nightly toolchain to use (default: the last that rustup
                  lists)

Exit status: 0 if nothing failed, 1 otherwise, 2 for wrong usage, 3 if
something that is needed is missing.
USAGE
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$TOP"
# What dies here lacks something that it needs.
# shellcheck disable=SC2034 # read by die
DIE_STATUS=3
FUZZ_DIR=tests/fuzz/libfuzzer
# A single allocation may not be larger: no input is, and none is worth so much.
MALLOC_MIB_MAX=64
# Most committed inputs of a target that libFuzzer has found, and most bytes of one.
FOUND_MAX=20
FOUND_LEN_MAX=600

make_work

declare -a ALL=() TARGETS=()
for file in "$FUZZ_DIR"/targets/*.rs; do
    ALL+=("$(basename "$file" .rs)")
done

SECONDS_EACH=120
MINIMISE=
while [[ $# -gt 0 ]]; do
    case $1 in
        --seconds)
            need_number "$1" "${2:-}"
            SECONDS_EACH=$2
            shift
            ;;
        --minimise) MINIMISE=1 ;;
        --help) usage; exit 0 ;;
        all) TARGETS+=("${ALL[@]}") ;;
        -*) die_usage "unknown argument $1" ;;
        *)
            [[ -f $FUZZ_DIR/targets/$1.rs ]] || die_usage "no target $1; there are ${ALL[*]}"
            TARGETS+=("$1")
            ;;
    esac
    shift
done
[[ ${#TARGETS[@]} -gt 0 ]] || TARGETS=("${ALL[@]}")

# Prints the toolchain to use.
find_toolchain() {
    command -v rustup >/dev/null || die "rustup is not installed; see https://rustup.rs"
    local toolchain=${FUZZ_TOOLCHAIN:-}
    [[ -n $toolchain ]] || toolchain=$(rustup toolchain list | cut --delimiter=' ' --fields=1 |
        sed --quiet '/^nightly/p' | tail --lines=1)
    [[ -n $toolchain ]] || die "libFuzzer needs a nightly toolchain, and rustup lists none;" \
        "rustup toolchain install nightly --profile minimal"
    echo "$toolchain"
}

TOOLCHAIN=$(find_toolchain)
cargo fuzz --version >/dev/null 2>&1 ||
    die "cargo-fuzz is not installed; cargo install --locked cargo-fuzz"
# The longest input that is worth its time, for each target, as the test has it.
cargo run --quiet --locked --package fuzz >"$WORK/targets"

# Runs a target with folders of inputs, and libFuzzer's arguments behind `--`.
libfuzzer() {
    cargo "+$TOOLCHAIN" fuzz run --fuzz-dir "$FUZZ_DIR" "$@"
}

run() {
    local target=$1 found=$TOP/target/fuzz/corpus/$1 artifacts=$TOP/target/fuzz/artifacts/$1 len_max
    len_max=$(awk -v target="$target" '$1 == target { print $2 }' "$WORK/targets")
    mkdir --parents "$found" "$artifacts"
    libfuzzer "$target" "$found" "$TOP/tests/fuzz/corpus/$target" -- \
        -max_total_time="$SECONDS_EACH" -max_len="$len_max" -timeout=20 \
        -malloc_limit_mb="$MALLOC_MIB_MAX" -artifact_prefix="$artifacts/" -print_final_stats=1
}

minimise() {
    local target=$1 found=$TOP/target/fuzz/corpus/$1 committed=$TOP/tests/fuzz/corpus/$1 count
    cp "$committed"/* "$found"
    cargo "+$TOOLCHAIN" fuzz cmin --fuzz-dir "$FUZZ_DIR" "$target" "$found"
    find "$committed" -regextype posix-extended -regex '.*/[0-9a-f]{40}' -delete
    mkdir "$WORK/$target"
    cp "$committed"/* "$WORK/$target"
    # New code only, not how often it runs: that would be hundreds.
    libfuzzer "$target" "$WORK/$target" "$found" -- \
        -merge=1 -use_counters=0 -max_len="$FOUND_LEN_MAX"
    find "$WORK/$target" -regextype posix-extended -regex '.*/[0-9a-f]{40}' -printf '%s %p\n' |
        sort --numeric-sort >"$WORK/by-size"
    # Some of every size: the small ones are easy to read, the large ones have come further.
    count=$(wc --lines <"$WORK/by-size")
    awk -v step="$(((count + FOUND_MAX - 1) / FOUND_MAX))" 'NR % step == 0 { print $2 }' \
        "$WORK/by-size" | xargs --no-run-if-empty cp --target-directory="$committed"
}

FAILED=()
for target in "${TARGETS[@]}"; do
    headline "$target"
    run "$target" || FAILED+=("$target")
    [[ -z $MINIMISE ]] || minimise "$target"
done
[[ ${#FAILED[@]} -eq 0 ]] || echo "failed: ${FAILED[*]}"
[[ ${#FAILED[@]} -eq 0 ]]

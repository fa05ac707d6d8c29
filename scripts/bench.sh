#!/usr/bin/env bash
#
# Measures both programs beside what people would use instead, and makes the report.
#
# Run `bench.sh --help` for usage and exit status.

set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/bench.sh [--quick] [--out DIR] [--compare OLD.json] [GROUP]...

Installs what it needs, builds release binaries, measures the given groups or all,
and writes DIR/benchmarks.json and DIR/benchmarks.md. Figures of other groups
that DIR already has are kept.

  exec          round trips of commands, against posix_spawn, socat, the QEMU
                guest agent and ssh (dropbear)
  streams       standard output and input, against socat and no relay at all
  footprint     binaries, memory, page faults, wake-ups
  growth        sessions, connections, arguments and output as they grow
  instructions  what tests/instructions.json has, for the report
  lab           boot, restore with its phases, CPU time, system calls and memory,
                commands, and clones on real VMMs, in scripts/lab.sh

  --quick             a few repetitions, to see that everything runs
  --out DIR           default: target/bench
  --compare OLD.json  print what got slower than in OLD.json beyond noise
  --no-report         leave benchmarks.md as it is

Without root, bench.sh measures what is installed. The report lists what could not
be measured.

Exit status: 0 when every group was measured and nothing got slower, 1 otherwise,
2 for wrong usage.
USAGE
}

STARTED_IN=$PWD
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$TOP"

# The alternatives, and what counts instructions and system calls. setup.sh installs the rest.
PACKAGES=(socat dropbear-bin qemu-guest-agent busybox-static valgrind strace)
# Outer machines started for one VMM at most: an emulated one can stop running.
LAB_MACHINES_MAX=6
ALL_GROUPS=(exec streams footprint growth instructions lab)

# Installs the packages that are missing, if it can.
install_peers() {
    local -a missing
    mapfile -t missing < <(missing_packages "${PACKAGES[@]}")
    [[ ${#missing[@]} -gt 0 ]] || return 0
    if [[ $EUID -ne 0 ]]; then
        note "not measured, because not installed: ${missing[*]}"
        return 0
    fi
    install_packages "${missing[@]}"
}

# Prints the path of a program of the tests package, built static as the agent is.
build_static() {
    local name=$1 target
    target=$(basename "$(dirname "$(dirname "$TEST_GUEST_AGENT")")")
    RUSTFLAGS=$(scripts/build-agent.sh --rustflags) cargo build --quiet --locked --release --package tests \
        --bin "$name" --target "$target" >&2
    echo "${CARGO_TARGET_DIR:-$TOP/target}/$target/release/$name"
}

build() {
    local release=${CARGO_TARGET_DIR:-$TOP/target}/release
    TEST_GUEST_AGENT=$(scripts/build-agent.sh)
    cargo build --quiet --locked --release --package host --package tests --bin host-tool --bin bench
    BENCH=$release/bench
    TEST_HOST_TOOL=$release/host-tool
    BENCH_EMPTY=$(build_static empty)
    # The agent's tree without itself.
    BENCH_CRATES=$(cargo tree --locked --package agent --edges normal,build --prefix none \
        --format '{p}' | sed 's/ .*//' | grep --invert-match --line-regexp agent |
        sort --unique | wc --lines)
    export TEST_GUEST_AGENT TEST_HOST_TOOL BENCH_EMPTY BENCH_CRATES
}

# Prints a program and its libraries, each as SRC:DEST with the path on this machine as both.
with_libraries() {
    local path
    echo "$1:$1"
    ldd "$1" | grep --only-matching '/[^ ]*' | while read -r path; do
        echo "$path:$path"
    done
}

# Makes the images for the lab.
make_images() {
    local echo_guest
    local -a files
    mkdir --parents target/lab
    TEST_BENCH_KERNEL=$(scripts/kernel.sh vmlinux)
    TEST_BENCH_INITRD=$TOP/target/lab/bench.cpio
    TEST_BENCH_ECHO_INITRD=$TOP/target/lab/bench-echo.cpio
    TEST_BENCH_ALONE_INITRD=$TOP/target/lab/bench-alone.cpio
    export TEST_BENCH_KERNEL TEST_BENCH_INITRD TEST_BENCH_ECHO_INITRD TEST_BENCH_ALONE_INITRD
    echo_guest=$(build_static echo-guest)
    scripts/mkinitramfs.sh --agent "$TEST_GUEST_AGENT" --out "$TEST_BENCH_ALONE_INITRD" >/dev/null
    scripts/mkinitramfs.sh --agent "$echo_guest" --out "$TEST_BENCH_ECHO_INITRD" >/dev/null
    # The alternatives run in the same guest.
    mapfile -t files < <(with_libraries /usr/bin/socat && with_libraries /usr/sbin/qemu-ga)
    scripts/mkinitramfs.sh --agent "$TEST_GUEST_AGENT" --out "$TEST_BENCH_INITRD" \
        --file /bin/busybox:/bin/true --file /bin/busybox:/bin/sh --file /bin/busybox:/bin/head \
        "${files[@]}" >/dev/null
}

# Measures in the lab and writes the record to the file $1. The caller continues when it fails.
measure_lab() {
    local record=$1 vmm left status
    local -a records
    mkdir "$WORK/lab"
    # Each VMM has its own outer machine. An emulated one can stop running and is then killed: the
    # next one measures the remaining pieces. It has two processors, because on hardware a guest
    # does not wait for its host's programs either.
    for vmm in firecracker qemu; do
        for ((left = LAB_MACHINES_MAX; left > 0; left--)); do
            status=0
            LAB_SMP=${LAB_SMP:-2} LAB_TIMEOUT=${LAB_TIMEOUT:-3600} LAB_OUT=$WORK/lab \
                scripts/lab.sh \
                "$BENCH" measure "$WORK/lab/$vmm.json" "${QUICK[@]}" "lab-$vmm" || status=$?
            [[ $status -eq 125 ]] || break
        done
        if [[ $status -ne 0 ]]; then
            note "not all of lab-$vmm was measured"
            FAILED=1
        fi
    done
    records=("$WORK/lab/"*.json)
    if [[ ! -e ${records[0]} ]]; then
        return 1
    fi
    "$BENCH" merge "$record" "${records[@]}"
}

# A function, so that bash reads the whole script before it runs any of it: an edit during a long
# run then does no harm.
main() {
    QUICK=()
    OUT=$TOP/target/bench
    COMPARE=
    REPORT=1
    FAILED=0
    GROUPS_WANTED=()
    while [[ $# -gt 0 ]]; do
        case $1 in
            --quick) QUICK=(--quick) ;;
            --out | --compare)
                [[ $# -ge 2 ]] || die_usage "$1 needs a value"
                # Relative to where the script was started.
                if [[ $1 == --out ]]; then
                    OUT=$STARTED_IN/$2
                    [[ $2 != /* ]] || OUT=$2
                else
                    COMPARE=$STARTED_IN/$2
                    [[ $2 != /* ]] || COMPARE=$2
                fi
                shift
                ;;
            --no-report) REPORT= ;;
            --help) usage; exit 0 ;;
            -*) die_usage "unknown option $1" ;;
            *)
                [[ " ${ALL_GROUPS[*]} " == *" $1 "* ]] || die_usage "there is no group '$1'"
                GROUPS_WANTED+=("$1")
                ;;
        esac
        shift
    done
    [[ ${#GROUPS_WANTED[@]} -gt 0 ]] || GROUPS_WANTED=("${ALL_GROUPS[@]}")
    [[ -z $COMPARE || -r $COMPARE ]] || die_usage "cannot read $COMPARE"

    scripts/setup.sh
    install_peers
    build
    make_work
    # Copied before --out may replace it.
    [[ -z $COMPARE ]] || cp "$COMPARE" "$WORK/old.json"

    local -a native=() records=()
    local group
    for group in "${GROUPS_WANTED[@]}"; do
        [[ $group == lab ]] || native+=("$group")
    done
    local is_lab_wanted=
    [[ " ${GROUPS_WANTED[*]} " != *" lab "* ]] || is_lab_wanted=1
    [[ -z $is_lab_wanted ]] || make_images
    if [[ ${#native[@]} -gt 0 ]]; then
        "$BENCH" measure "$WORK/native.json" "${QUICK[@]}" "${native[@]}" || FAILED=1
        [[ ! -e $WORK/native.json ]] || records+=("$WORK/native.json")
    fi
    if [[ -n $is_lab_wanted ]]; then
        measure_lab "$WORK/lab-record.json" || FAILED=1
        [[ ! -e $WORK/lab-record.json ]] || records+=("$WORK/lab-record.json")
    fi
    [[ ${#records[@]} -gt 0 ]] || exit 1

    "$BENCH" merge "$WORK/new.json" "${records[@]}"
    mkdir --parents "$OUT"
    records=("$WORK/new.json")
    [[ ! -e $OUT/benchmarks.json ]] || records=("$OUT/benchmarks.json" "${records[@]}")
    "$BENCH" merge "$WORK/all.json" "${records[@]}"
    mv "$WORK/all.json" "$OUT/benchmarks.json"
    if [[ -n $REPORT ]]; then
        "$BENCH" report "$OUT/benchmarks.json" "$OUT"
        echo "$OUT/benchmarks.md"
    fi
    [[ -z $COMPARE ]] || "$BENCH" compare "$WORK/old.json" "$WORK/new.json" || FAILED=1
    exit "$FAILED"
}

main "$@"

#!/usr/bin/env bash
#
# Runs every test there is and says at the end how many ran, and which did not.
#
# Run `test.sh --help` for usage, environment and exit status.

set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/test.sh [TIER]... [-- ARGUMENT...]

Installs what is needed (setup.sh), runs the tiers named, or all, in this
order, and prints a summary. ARGUMENTs go to the test programs, such as a part
of a test's name; give them with one tier only.

  style    cargo fmt, clippy with warnings as errors, rustdoc, shellcheck
           and the tidy test
  unit     unit, table and simulation tests of the crates, the protocol
           document's examples, the exploration of the handshake, a million
           simulated schedules, and every fuzz target for a second
  process  the two programs as ordinary processes, and the agent's instructions
           where valgrind is installed: no virtual machine
  lab      real microVMs on every VMM that is here, in scripts/lab.sh

Environment:
  TEST_KEEP_GOING  set: run the later tiers although an earlier one failed
  TEST_LAB_SET     quick: all lab cases but the longest, which take minutes each;
                   the default where CI is set and the lab is emulated
  TEST_LAB_SHARD   N/M: only each Mth lab case, from the Nth on
  LAB_MODE and the rest: see lab.sh; FIRECRACKER, QEMU: the VMM programs

Exit status: 0 when everything passed, 1 otherwise, 2 for wrong usage.
USAGE
}

# A shell starts background commands with interrupts ignored, and their children inherit that. Some
# tests send an interrupt.
if [[ -z ${TEST_DEFAULT_SIGNALS:-} ]]; then
    TEST_DEFAULT_SIGNALS=1 exec env --default-signal "${BASH_SOURCE[0]}" "$@"
fi

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$TOP"
make_work

declare -a TIERS=() ARGUMENTS=() FAILED=()

# Runs a command whose output is shown and kept as the log of the tier $1.
logged() {
    local tier=$1
    shift
    "$@" 2>&1 | tee --append "$WORK/$tier.log"
}

run_style() {
    headline "style: fmt, clippy, rustdoc, tidy"
    cargo fmt --all --check
    cargo clippy --quiet --locked --workspace --all-targets -- --deny warnings
    RUSTDOCFLAGS='--deny warnings' cargo doc --quiet --locked --workspace --no-deps --document-private-items
    shellcheck --severity=warning scripts/*.sh .ci/run
    logged style cargo test --quiet --locked --package tests --test tidy -- "${ARGUMENTS[@]}"
}

run_unit() {
    headline "unit: machines, codecs, tables, simulation"
    logged unit cargo test --locked --package shared --package agent --package host -- "${ARGUMENTS[@]}"
    # Millions of steps, so optimized; its threads share the cores as it is, so one test at a time.
    logged unit cargo test --locked --profile model --package model -- --test-threads=1 "${ARGUMENTS[@]}"
    # A million schedules, whose threads share the cores as well.
    logged unit cargo test --locked --profile model --package simulation -- --test-threads=1 "${ARGUMENTS[@]}"
    # A million inputs and more, so optimized, too.
    logged unit cargo test --locked --profile model --package fuzz -- --test-threads=1 "${ARGUMENTS[@]}"
    logged unit cargo test --locked --package tests --bin bench -- "${ARGUMENTS[@]}"
}

run_process() {
    headline "process: the two programs on Unix sockets"
    cargo build --quiet --locked --workspace
    logged process cargo test --locked --package tests --test it --test instructions -- "${ARGUMENTS[@]}"
}

# Prints the path of the compiled lab test program. Cargo lists the package's other programs, too.
lab_program() {
    cargo test --quiet --locked --package tests --test lab --no-run --message-format=json |
        grep --fixed-strings '"kind":["test"]' |
        sed --quiet --regexp-extended 's/.*"executable":"([^"]+)".*/\1/p' | tail --lines=1
}

run_lab() {
    # All cases with both VMMs take up to an hour where the machine is busy.
    export LAB_TIMEOUT=${LAB_TIMEOUT:-3600}
    headline "lab: real microVMs"
    cargo build --quiet --locked --workspace
    local program agent
    program=$(lab_program)
    agent=$(scripts/build-agent.sh)
    TEST_KERNEL=$(scripts/kernel.sh vmlinux)
    TEST_INITRD=$TOP/target/lab/test.cpio
    TEST_INITRD_SILENT=$TOP/target/lab/silent.cpio
    TEST_INITRD_WORKLOAD=$TOP/target/lab/workload.cpio
    TEST_INITRD_FAILPOINTS=$TOP/target/lab/failpoints.cpio
    export TEST_KERNEL TEST_INITRD TEST_INITRD_SILENT TEST_INITRD_WORKLOAD TEST_INITRD_FAILPOINTS
    mkdir --parents target/lab
    make_test_image "$agent" "$TEST_INITRD"
    make_workload_image "$agent" "$TEST_INITRD_WORKLOAD"
    # The same agent with debug assertions, and so with failpoints.
    agent=$(CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true CARGO_TARGET_DIR=$TOP/target/failpoints scripts/build-agent.sh)
    make_test_image "$agent" "$TEST_INITRD_FAILPOINTS"
    # An image whose init is alive and is not an agent.
    printf '#!/bin/busybox sh\nwhile :; do /bin/busybox sleep 1000; done\n' >target/lab/silent-init
    chmod +x target/lab/silent-init
    scripts/mkinitramfs.sh --agent target/lab/silent-init --out "$TEST_INITRD_SILENT" \
        --file /bin/busybox:/bin/busybox >/dev/null
    # Emulated, everything takes ten times as long.
    if [[ -n ${CI:-} && -z ${TEST_LAB_SET:-} && $(scripts/lab.sh --which) == emulated ]]; then
        export TEST_LAB_SET=quick
    fi
    run_lab_shards "$program"
}

# Runs the lab's test program, in two outer machines at once where the lab is emulated and the
# machine has the memory: each outer machine has one processor.
run_lab_shards() {
    local program=$1 shard status=0
    if [[ $(scripts/lab.sh --which) == direct || $(nproc) -lt 2 ]] ||
        [[ $(awk '/^MemAvailable:/ { print int($2 / 1048576) }' /proc/meminfo) -lt 14 ]]; then
        logged lab scripts/lab.sh "$program" "${ARGUMENTS[@]}"
        return
    fi
    # The second one's output is shown when the first has ended, so that lines do not mix.
    TEST_LAB_SHARD=2/2 scripts/lab.sh "$program" "${ARGUMENTS[@]}" >"$WORK/lab-2.log" 2>&1 &
    shard=$!
    TEST_LAB_SHARD=1/2 logged lab scripts/lab.sh "$program" "${ARGUMENTS[@]}" || status=$?
    wait "$shard" || status=$?
    tee --append "$WORK/lab.log" <"$WORK/lab-2.log"
    rm "$WORK/lab-2.log"
    return "$status"
}

# The image of the tests: the agent, drivers for disks and network, and a shell for commands to run.
# Debian's static busybox runs its other applets through /proc/self/exe, so that one file is enough.
make_test_image() {
    local agent=$1 image=$2
    scripts/mkinitramfs.sh --agent "$agent" --out "$image" --file /bin/busybox:/bin/sh \
        --module virtio_mmio --module virtio_blk --module virtio_net --module vsock \
        --module vmw_vsock_virtio_transport_common --module vmw_vsock_virtio_transport >/dev/null
}

# The same with a workload that prints a line with the next number for ever.
make_workload_image() {
    local agent=$1 image=$2 json=target/lab/workload.json
    cat >"$json" <<'JSON'
{"workload":{"argv":["sh","-c","i=0; while :; do echo $i; i=$((i+1)); usleep 10000; done"]}}
JSON
    scripts/mkinitramfs.sh --agent "$agent" --out "$image" --agent-json "$json" \
        --file /bin/busybox:/bin/sh >/dev/null
}

# Adds up the closing lines of one tier's test programs.
count() {
    local tier=$1 field=$2
    sed --quiet --regexp-extended "s/^test result: .* ([0-9]+) $field;.*/\1/p" "$WORK/$tier.log" |
        awk '{ sum += $1 } END { print sum + 0 }'
}

summary() {
    headline "summary"
    local tier passed failed ignored sum_passed=0 sum_failed=0 sum_ignored=0
    for tier in "${TIERS[@]}"; do
        [[ -f $WORK/$tier.log ]] || continue
        passed=$(count "$tier" passed)
        failed=$(count "$tier" failed)
        ignored=$(count "$tier" ignored)
        printf '%-8s %5d passed %3d failed %3d skipped\n' "$tier" "$passed" "$failed" "$ignored"
        sum_passed=$((sum_passed + passed))
        sum_failed=$((sum_failed + failed))
        sum_ignored=$((sum_ignored + ignored))
    done
    cat "$WORK"/*.log 2>/dev/null | grep --text --extended-regexp '^(skipped|note): ' | sort --unique || true
    sed --quiet --regexp-extended 's/^test (.*) \.\.\. ignored.*/skipped: \1/p' "$WORK"/*.log 2>/dev/null | sort || true
    if [[ ${#FAILED[@]} -gt 0 ]]; then
        echo "failed: ${FAILED[*]}"
    fi
    echo "$sum_passed passed, $sum_failed failed, $sum_ignored skipped"
}

while [[ $# -gt 0 ]]; do
    case $1 in
        style | unit | process | lab) TIERS+=("$1") ;;
        --help) usage; exit 0 ;;
        --) shift; ARGUMENTS=("$@"); break ;;
        *) die_usage "unknown tier $1" ;;
    esac
    shift
done
[[ ${#TIERS[@]} -gt 0 ]] || TIERS=(style unit process lab)

scripts/setup.sh
for tier in "${TIERS[@]}"; do
    started=$SECONDS
    status=0
    # In a subshell of its own, so that `set -e` ends the tier at its first error.
    ( set -e; "run_$tier" ) & wait $! || status=$?
    echo "$tier took $((SECONDS - started)) s"
    if [[ $status -ne 0 ]]; then
        FAILED+=("$tier")
        [[ -n ${TEST_KEEP_GOING:-} ]] || break
    fi
done
summary
[[ ${#FAILED[@]} -eq 0 ]]

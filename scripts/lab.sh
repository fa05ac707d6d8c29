#!/usr/bin/env bash
#
# Runs a command where real microVMs run.
#
# On a machine with hardware virtualization that is right here. Elsewhere it is
# an outer virtual machine: QEMU emulates a processor with AMD SVM, a Debian
# kernel in it loads kvm-amd and vhost_vsock, and so Firecracker and QEMU work
# inside as they do on real hardware, only slower. The outer machine shows this
# machine's file system under the same paths and drops all writes to it, except
# those below LAB_OUT.
#
# Run `lab.sh --help` for usage, environment and exit status.

set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/lab.sh [--which] COMMAND [ARGUMENT]...

Runs COMMAND with its arguments, working directory and environment, standard
input from /dev/null, and passes on what it writes and its exit status.

  --which   only print where COMMAND would run: direct or emulated
  --help    this text

Environment read:
  LAB_MODE     direct or emulated; default: direct if the processor has svm or
               vmx and /dev/kvm and /dev/vhost-vsock are usable, else emulated
  LAB_TIMEOUT  seconds after which COMMAND is ended, default 1800
  LAB_OUT      a directory that COMMAND can write to and that outlives it;
               default: a temporary one, removed at the end
  LAB_CACHE, LAB_KERNEL  see kernel.sh
Environment read in emulated mode:
  LAB_MEM      memory of the outer machine in MiB, default 6144 or what three
               quarters of the free memory allow, at least 3072
  LAB_SMP      its processors, default 1; with more, the emulator now and then
               shuts a guest's processor down, and everything is slower
  LAB_QEMU     the program that emulates it, default: see emulator.sh
  LAB_CONSOLE  a file for its console, default: dropped unless something fails
  LAB_APPEND   more kernel parameters for it

Environment of COMMAND:
  LAB          direct or emulated
  LAB_EMULATOR what emulates the outer machine, with its version; only emulated
  LAB_TMP      an empty private directory for sockets and guest memory, removed
               at the end; TMPDIR is the same, XDG_RUNTIME_DIR lies below it
  LAB_OUT      as above, under the same path inside and outside
Emulated, it has only these besides: CI HOME LANG LC_ALL NO_COLOR PATH SEED TERM
and all that begin with CARGO_ FIRECRACKER GUEST_AGENT HOST_TOOL_ LAB_ NEXTEST
RUST_ RUSTUP_ TEST_. It runs as root there, in a file system whose changes vanish.

Exit status: COMMAND's own (126 not runnable, 127 not found, 128+n signal n);
124 if LAB_TIMEOUT ran out; 125 if there is no lab, or the outer machine died;
2 for wrong usage.
USAGE
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
# shellcheck disable=SC2034 # read by die
DIE_STATUS=125

# Whether this machine itself can run stock guests with vsock. A /dev/kvm alone
# says little: there are machines that have one without svm or vmx, and only
# specially built guests run there. So the processor's flags decide.
direct_is_possible() {
    grep --quiet --extended-regexp '^flags[[:space:]]*:.*\b(svm|vmx)\b' /proc/cpuinfo || return 1
    if [[ $EUID -eq 0 ]] && command -v modprobe >/dev/null; then
        [[ -e /dev/kvm ]] || modprobe --quiet --all kvm-amd kvm-intel 2>/dev/null || true
        [[ -e /dev/vhost-vsock ]] || modprobe --quiet vhost_vsock 2>/dev/null || true
    fi
    [[ -r /dev/kvm && -w /dev/kvm && -r /dev/vhost-vsock && -w /dev/vhost-vsock ]]
}

choose_mode() {
    case ${LAB_MODE:-} in
        direct | emulated) echo "$LAB_MODE" ;;
        '')
            if direct_is_possible; then
                echo direct
            else
                echo emulated
            fi
            ;;
        *)
            die_usage "LAB_MODE is '$LAB_MODE', neither direct nor emulated"
            ;;
    esac
}

# Ends the child that runs everything, and removes what this script made.
# shellcheck disable=SC2317 # called by the EXIT trap
cleanup() {
    local status=$?
    trap - EXIT INT TERM HUP
    if [[ -n $CHILD ]]; then
        # timeout(1) passes this on to COMMAND or QEMU and its children.
        kill -TERM "$CHILD" 2>/dev/null || true
        # A suspended process takes the TERM only when it continues.
        kill -CONT "$CHILD" 2>/dev/null || true
        wait "$CHILD" 2>/dev/null || true
    fi
    if [[ ${#FOLLOWERS[@]} -gt 0 ]]; then
        kill "${FOLLOWERS[@]}" 2>/dev/null || true
    fi
    rm --recursive --force "$WORK"
    exit "$status"
}

# Waits for process $1 although signals may interrupt `wait`; sets STATUS.
await() {
    STATUS=0
    # The shell would report a death by signal; COMMAND's status says it.
    { wait "$1" || STATUS=$?; } 2>/dev/null
}

run_direct() {
    mkdir --mode=0700 "$WORK/tmp" "$WORK/tmp/xdg-runtime"
    # A lab inside the emulated lab is still emulated.
    export LAB=${LAB:-direct} LAB_TMP=$WORK/tmp LAB_OUT=$OUT
    export TMPDIR=$LAB_TMP XDG_RUNTIME_DIR=$LAB_TMP/xdg-runtime
    # Without job control a shell starts background commands with SIGINT and
    # SIGQUIT ignored, and COMMAND would inherit that.
    set -o monitor
    timeout --kill-after=10 "$TIMEOUT" "$@" </dev/null &
    CHILD=$!
    set +o monitor
    await "$CHILD"
    # As in the outer machine, what COMMAND left running ends with it.
    kill -KILL -- "-$CHILD" 2>/dev/null || true
    CHILD=
}

# Prints the memory for the outer machine in MiB.
outer_memory() {
    local available memory=6144
    if [[ -n ${LAB_MEM:-} ]]; then
        if [[ ! $LAB_MEM =~ ^[0-9]+$ ]] || ((LAB_MEM < 3072)); then
            die "LAB_MEM is '$LAB_MEM', not a number of MiB from 3072 up"
        fi
        echo "$LAB_MEM"
        return
    fi
    available=$(awk '/^MemAvailable:/ { print int($2 / 1024 * 3 / 4) }' /proc/meminfo)
    if ((available < memory)); then
        memory=$available
    fi
    if ((memory < 3072)); then
        die "only $available MiB of memory can be spared for the outer machine, it needs 3072; free some or set LAB_MEM"
    fi
    echo "$memory"
}

# Prints the path of the outer machine's initramfs, made if the cache has none
# for this kernel and these scripts.
outer_initramfs() {
    local busybox=/bin/busybox kernel_dir key image
    [[ -x $busybox ]] || busybox=$(command -v busybox) ||
        die "busybox is missing; run scripts/setup.sh"
    kernel_dir=$("$TOP/scripts/kernel.sh" dir)
    key=$(cat "$TOP"/scripts/lab.sh "$TOP"/scripts/lab-init.sh "$TOP"/scripts/mkinitramfs.sh "$busybox" | sha256sum | head --bytes=16)
    image=$kernel_dir/lab-$key.cpio
    if [[ ! -e $image ]]; then
        local -a modules=()
        local name
        for name in "${OUTER_MODULES[@]}"; do
            modules+=(--module "$name")
        done
        "$TOP/scripts/mkinitramfs.sh" --init "$TOP/scripts/lab-init.sh" --file "$busybox:/bin/busybox" \
            --modules-from "$("$TOP/scripts/kernel.sh" modules)" "${modules[@]}" --out "$image" >/dev/null
    fi
    echo "$image"
}

# Writes the script that becomes COMMAND inside, to standard output. In the C
# locale bash quotes every byte that is not ASCII, so any argument survives.
write_job() {
    local pair
    local -a environment=()
    mapfile -d '' environment < <(env --null)
    local LC_ALL=C
    printf 'cd %q || exit 125\n' "$PWD"
    for pair in "${environment[@]}"; do
        case ${pair%%=*} in
            CI | HOME | LANG | LC_ALL | NO_COLOR | PATH | SEED | TERM | \
                CARGO_* | FIRECRACKER* | GUEST_AGENT* | HOST_TOOL_* | LAB_* | \
                NEXTEST* | RUST_* | RUSTUP_* | TEST_*)
                printf 'export %s=%q\n' "${pair%%=*}" "${pair#*=}"
                ;;
        esac
    done
    cat <<'JOB'
export LAB=emulated LAB_TMP=/run/lab-tmp TMPDIR=/run/lab-tmp
export XDG_RUNTIME_DIR=/run/lab-tmp/xdg-runtime
unset LAB_MODE OLDPWD SHLVL
JOB
    printf 'export LAB_OUT=%q\n' "$OUT"
    printf 'exec --'
    printf ' %q' "$@"
    echo
}

# Ends the outer machine when it stands still. Under an emulated SVM its processors can spin without
# taking an interrupt. Then no clock runs inside, and no time limit there can end the machine.
watch_pulse() {
    local pulse=$1 machine=$2 age
    while sleep 10 && kill -0 "$machine" 2>/dev/null; do
        [[ -e $pulse ]] || continue
        age=$(($(date +%s) - $(stat --format=%Y "$pulse")))
        if ((age > PULSE_MAX)); then
            note "the outer machine has stood still for $age s and is ended"
            kill -TERM "$machine" 2>/dev/null
            # A suspended process takes the TERM only when it continues.
            kill -CONT "$machine" 2>/dev/null
            return
        fi
    done
}

run_emulated() {
    local control=$WORK/control console=${LAB_CONSOLE:-$WORK/console} memory initramfs vmlinux
    local emulator
    emulator=$("$TOP/scripts/emulator.sh") || die "there is no emulator for the outer machine"
    read -r LAB_EMULATOR < <("$emulator" --version)
    export LAB_EMULATOR
    memory=$(outer_memory)
    vmlinux=$("$TOP/scripts/kernel.sh" vmlinux) || die "there is no kernel for the outer machine"
    initramfs=$(outer_initramfs) || die "there is no initramfs for the outer machine"

    mkdir "$control"
    : >"$control/stdout"
    : >"$control/stderr"
    : >"$console"
    printf '%s' "$OUT" >"$control/out-path"
    write_job "$@" >"$control/job.sh"

    # ERMS makes the kernel copy with `rep movsb`, which TCG executes byte by
    # byte; without it, the kernel copies eight bytes at a time. FSRM goes with
    # it: Linux 6.1 assumes ERMS where it sees FSRM, and spins at boot on QEMU 10
    # (7.2 does not emulate FSRM). Booting takes a fifth less processor time on
    # q35 than on the older pc machine. A comma in a value is doubled for QEMU.
    #
    # One processor: TCG gives each a thread, and two that run guests at once
    # slow each other down. A restore took twice the time, and a processor of a
    # guest was shut down now and then.
    local -a qemu=(
        "$emulator"
        -nodefaults -no-user-config -display none -no-reboot
        -machine q35 -accel "tcg,thread=multi" -cpu "max,erms=off,fsrm=off"
        -smp "${LAB_SMP:-1}" -m "$memory"
        -kernel "$vmlinux" -initrd "$initramfs"
        -append "$OUTER_PARAMETERS ${LAB_APPEND:-}"
        -serial "file:${console//,/,,}"
        -virtfs "local,path=/,mount_tag=lab-root,security_model=none,readonly=on,multidevs=remap"
        -virtfs "local,path=${control//,/,,},mount_tag=lab-control,security_model=none"
        -virtfs "local,path=${OUT//,/,,},mount_tag=lab-out,security_model=none,multidevs=remap"
    )
    timeout --kill-after=10 "$TIMEOUT" "${qemu[@]}" </dev/null >"$WORK/qemu.log" 2>&1 &
    CHILD=$!
    tail --follow --bytes=+1 --sleep-interval=0.1 --pid="$CHILD" "$control/stdout" &
    FOLLOWERS+=("$!")
    tail --follow --bytes=+1 --sleep-interval=0.1 --pid="$CHILD" "$control/stderr" >&2 &
    FOLLOWERS+=("$!")
    watch_pulse "$control/pulse" "$CHILD" &
    local watcher=$!
    FOLLOWERS+=("$watcher")
    await "$CHILD"
    CHILD=
    kill "$watcher" 2>/dev/null || true
    # They end by themselves, once they have passed on all that was written.
    wait "${FOLLOWERS[@]}" || true
    FOLLOWERS=()

    if [[ -e $control/status ]]; then
        STATUS=$(<"$control/status")
    elif [[ $STATUS -ne 124 ]]; then
        note "the outer machine ended without the command's exit status (QEMU: $STATUS); QEMU said:"
        cat "$WORK/qemu.log" >&2
        note "the end of its console:"
        tail --lines=40 "$console" >&2
        STATUS=125
    fi
}

# A function, so that bash has read the whole script before it runs any of it:
# then an edit during a long run does no harm.
main() {
    case ${1:-} in
        --help) usage && exit 0 ;;
        --which)
            choose_mode
            exit 0
            ;;
        --) shift ;;
        -*)
            die_usage "unknown option '$1'"
            ;;
    esac
    if [[ $# -eq 0 ]]; then
        die_usage "no command given"
    fi

    TIMEOUT=${LAB_TIMEOUT:-1800}
    [[ $TIMEOUT =~ ^[0-9]+$ ]] || die "LAB_TIMEOUT is '$TIMEOUT', not a number of seconds"
    # In load order where it matters to a reader; dependencies come by themselves.
    OUTER_MODULES=(virtio_pci 9pnet_virtio 9p overlay kvm-amd vhost_vsock tun)
    # On a busy host the interrupt of the timer test comes late, and the kernel would panic: hence
    # no_timer_check. The time-stamp counter is not declared reliable, although Linux then falls
    # back to the HPET, which is slow to read: with tsc=reliable, two guests restored at once were
    # seen to spin for minutes. Huge pages are off: khugepaged, which moves a guest's memory under
    # it, was seen to hang for good in the midst of that, and the guest with it.
    OUTER_PARAMETERS="console=ttyS0 quiet panic=-1 no_timer_check mitigations=off"
    OUTER_PARAMETERS+=" random.trust_cpu=on cryptomgr.notests transparent_hugepage=never"
    # Seconds without a sign of life.
    PULSE_MAX=90
    MODE=$(choose_mode)

    CHILD=
    FOLLOWERS=()
    WORK=$(mktemp --directory "${TMPDIR:-/tmp}/lab.XXXXXX")
    trap cleanup EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM

    OUT=${LAB_OUT:-$WORK/out}
    mkdir --parents "$OUT"
    OUT=$(realpath "$OUT")

    case $MODE in
        direct) run_direct "$@" ;;
        emulated) run_emulated "$@" ;;
    esac
    if [[ $STATUS -eq 124 ]]; then
        note "ended after LAB_TIMEOUT=$TIMEOUT seconds, unless the command itself exits with 124"
    fi
    exit "$STATUS"
}

main "$@"

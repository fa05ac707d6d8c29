#!/usr/bin/env bash
#
# The whole path in one command: builds both programs, boots a real microVM,
# snapshots it, restores it three times, and runs a command in each clone.
#
# Run `demo.sh --help` for usage and exit status.

set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/demo.sh [--vmm firecracker|qemu]

Installs what is needed (setup.sh), builds host-tool, guest-agent and an image
with the agent as its /init, and shows boot, snapshot and three restores with
their time lines. Runs here if the machine can, and otherwise in the emulated
lab (lab.sh), where everything is several times slower.

  --vmm NAME  default: firecracker if there is one, else qemu

Environment: see lab.sh and kernel.sh; FIRECRACKER and QEMU name the programs.

Exit status: 0 when three clones were ready and ran a command, otherwise that
of the step that failed; 2 for wrong usage.
USAGE
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$TOP"

VMM=
INSIDE=
while [[ $# -gt 0 ]]; do
    case $1 in
        --vmm)
            [[ ${2:-} == firecracker || ${2:-} == qemu ]] || die_usage "--vmm takes firecracker or qemu"
            VMM=$2
            shift
            ;;
        --inside) INSIDE=1 ;;
        --help) usage; exit 0 ;;
        *) die_usage "unknown argument $1" ;;
    esac
    shift
done

# Shows a command as one would type it, then runs it.
show() {
    printf '\n$ %s\n' "$*"
    "$@"
}

pick_vmm() {
    if [[ -n ${FIRECRACKER:-} ]] || command -v firecracker >/dev/null; then
        echo firecracker
    else
        echo qemu
    fi
}

prepare() {
    scripts/setup.sh
    cargo build --quiet --locked --release --package host
    local agent
    agent=$(scripts/build-agent.sh)
    DEMO_KERNEL=$(scripts/kernel.sh vmlinux)
    DEMO_INITRD=$TOP/target/lab/demo.cpio
    mkdir --parents target/lab
    scripts/mkinitramfs.sh --agent "$agent" --out "$DEMO_INITRD" >/dev/null
}

# Runs where microVMs run. The agent is the only program of the image, so the commands run it.
demo() {
    local kernel=$1 initrd=$2 name
    local work
    work=$(mktemp --directory)
    PATH=$TOP/target/release:$PATH
    HOST_TOOL_STATE_DIR=$work/state
    export HOST_TOOL_STATE_DIR PATH
    mkdir "$HOST_TOOL_STATE_DIR"
    cd "$work"
    # No VM stays behind when a step fails.
    trap 'for name in demo clone-1 clone-2 clone-3; do host-tool rm "$name" --force >/dev/null 2>&1 || true; done
          rm --recursive --force "'"$work"'"' EXIT
    show host-tool boot --name demo --vmm "$VMM" --kernel "$kernel" --initrd "$initrd" --mem 128M --timeout 2m
    show host-tool exec --name demo -- /init --version
    show host-tool snapshot --name demo --out base.snapshot --timeout 2m
    show host-tool exec --name demo -- /init --version
    for name in clone-1 clone-2 clone-3; do
        show host-tool restore base.snapshot --name "$name" --wait-ready --timeout 2m
        show host-tool exec --name "$name" -- /init --version
    done
    show host-tool ls
    printf '\nthree clones were ready, and each ran a command\n'
}

if [[ -n $INSIDE ]]; then
    demo "$LAB_DEMO_KERNEL" "$LAB_DEMO_INITRD"
else
    VMM=${VMM:-$(pick_vmm)}
    prepare
    export LAB_DEMO_KERNEL=$DEMO_KERNEL LAB_DEMO_INITRD=$DEMO_INITRD
    echo "demo on $VMM, $(scripts/lab.sh --which) lab"
    exec scripts/lab.sh scripts/demo.sh --inside --vmm "$VMM"
fi

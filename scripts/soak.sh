#!/usr/bin/env bash
#
# Restores real microVMs again and again, with faults at random, and looks for what adds up.
#
# Run `soak.sh --help` for usage, environment and exit status.

set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/soak.sh [--seconds N] [--restores N] [--seed N] [--vmm firecracker|qemu]

Boots a microVM in the lab (lab.sh), and restores clones of it and of them.
Each clone meets one fault: a step of the restore fails or is killed, the VMM
or its supervisor is killed, the VMM is stopped, connections are cut, a dozen
commands run at once, the clock jumps, the clone is snapshotted at work.
Every clone has to become ready, run commands, have a generation and random
bytes of its own and the right time, and lose no line of output. Nothing may be
left behind, and the agent may not grow along a line of clones. Ends with one
line for each VMM.

  --seconds N   begin no restore after so long, for each VMM (default 600,
                without end if --restores is given)
  --restores N  end after so many, for each VMM
  --seed N      the order of the faults; the last line says which it was
                (default 1)
  --vmm NAME    only this one (default: each that is here)

Environment: see test.sh and lab.sh.

Exit status: 0 if nothing failed and nothing leaked, 1 otherwise, 2 for wrong
usage.
USAGE
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

SECONDS_MAX=
RESTORES=
SEED=1
VMM=
while [[ $# -gt 0 ]]; do
    case $1 in
        --seconds) need_number "$1" "${2:-}"; SECONDS_MAX=$2; shift ;;
        --restores) need_number "$1" "${2:-}"; RESTORES=$2; shift ;;
        --seed) need_number "$1" "${2:-}"; SEED=$2; shift ;;
        --vmm)
            [[ ${2:-} == firecracker || ${2:-} == qemu ]] || die_usage "--vmm takes firecracker or qemu"
            VMM=$2
            shift
            ;;
        --help) usage; exit 0 ;;
        *) die_usage "unknown argument $1" ;;
    esac
    shift
done
[[ -n $SECONDS_MAX || -n $RESTORES ]] || SECONDS_MAX=600

[[ -z $SECONDS_MAX ]] || export TEST_SOAK_SECONDS=$SECONDS_MAX
[[ -z $RESTORES ]] || export TEST_SOAK_RESTORES=$RESTORES
export TEST_SOAK_SEED=$SEED
exec "$TOP/scripts/test.sh" lab -- "${VMM:+$VMM::}soak"

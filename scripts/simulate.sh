#!/usr/bin/env bash
#
# Plays random schedules of the agent and its clients over a simulated kernel.
#
# Run `simulate.sh --help` for usage and exit status.

set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/simulate.sh [--runs N | --seconds N] [--seed N]
       SEED=N scripts/simulate.sh

Plays N schedules (a million by default), or as many as fit into N seconds, on
all processors, from seed N on (0 by default, or the time in seconds with
--seconds, so that every run is another one). Prints what the schedules met,
their lengths, and one line of verdict with the seeds. A schedule that fails is
made as short as it gets, and its last steps are printed.

With SEED it plays that one schedule again.

Exit status: 0 when every schedule held, 1 when one did not, 2 for wrong usage.
USAGE
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

declare -a ARGUMENTS=()
has_seconds='' has_seed=''
while [[ $# -gt 0 ]]; do
    case $1 in
        -h | --help) usage; exit 0 ;;
        --runs | --seconds | --seed)
            [[ ${2-} =~ ^[0-9]+$ ]] || die_usage "$1 needs a number"
            [[ $1 != --seconds ]] || has_seconds=1
            [[ $1 != --seed ]] || has_seed=1
            ARGUMENTS+=("$1" "$2")
            shift 2
            ;;
        *) usage >&2; exit 2 ;;
    esac
done
if [[ -n $has_seconds && -z $has_seed ]]; then
    ARGUMENTS+=(--seed "$(date +%s)000000")
fi

cd "$TOP"
cargo build --quiet --locked --profile model --package simulation
exec target/model/simulation "${ARGUMENTS[@]}"

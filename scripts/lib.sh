# shellcheck shell=bash
#
# What the scripts share. A script sources this file at its head; it prints nothing and runs nothing.
#
# TOP is the project's folder. Messages carry the script's name.

# shellcheck disable=SC2034 # for the scripts
TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

note() {
    echo "${0##*/}: $*" >&2
}

# Ends the script. DIE_STATUS is its exit status for a failure, 1 unless the script sets it.
die() {
    note "$*"
    exit "${DIE_STATUS:-1}"
}

die_usage() {
    note "$*; see ${0##*/} --help"
    exit 2
}

# Prints a headline between the parts of a long run.
headline() {
    printf '\n== %s\n' "$*"
}

need() {
    command -v "$1" >/dev/null 2>&1 || die "the program '$1' is missing; run scripts/setup.sh"
}

# Fails unless $2, the value given for option $1, is a whole number from 1 to 999999999.
need_number() {
    [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] ||
        die_usage "$1 takes a number from 1 to 999999999, not '$2'"
}

# Makes WORK, a private directory that is removed when the script ends.
make_work() {
    WORK=$(mktemp --directory "${TMPDIR:-/tmp}/${0##*/}.XXXXXX")
    trap 'rm --recursive --force "$WORK"' EXIT
}

# Makes CACHE, the folder that the lab's downloads are kept in.
make_cache() {
    CACHE=${LAB_CACHE:-${XDG_CACHE_HOME:-${HOME:?is not set; set LAB_CACHE}/.cache}/host-tool-lab}
    mkdir --parents "$CACHE"
    CACHE=$(realpath "$CACHE")
}

# Runs the rest of the arguments under the lock file $1. The kernel releases the lock when its
# holder ends, so an interrupted download leaves no lock behind.
under_lock() {
    local lock
    need flock
    exec {lock}>"$1"
    flock "$lock"
    shift
    "$@"
    exec {lock}>&-
}

# Prints those of the Debian packages named that are not installed.
missing_packages() {
    local package status
    for package in "$@"; do
        status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
        [[ $status == installed ]] || echo "$package"
    done
}

# Installs Debian packages, as root.
install_packages() {
    apt-get update --quiet
    DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "$@"
}

# As root, apt downloads as the user _apt, who cannot write to a private directory, and says so at
# length. Downloads as root are harmless, because apt verifies them.
APT_OPTIONS=(--quiet=2)
[[ $EUID -ne 0 ]] || APT_OPTIONS+=(--option APT::Sandbox::User=root)

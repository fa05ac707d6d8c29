#!/usr/bin/env bash
#
# Installs what the demo and the tests need from Debian, and nothing else.
#
# Run `setup.sh --help` for usage and exit status.

set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/setup.sh [--check]

Installs the Debian packages that the scripts need. Does nothing when they are
there. Without root it prints the command that an administrator would run.
Rust is not installed: get it from your distribution or from rustup.

  --check  only say what is missing

Exit status: 0 when everything is there, 1 when something is missing and was
not installed, 2 for wrong usage.
USAGE
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

CHECK=
case ${1:-} in
    --help) usage; exit 0 ;;
    --check) CHECK=1 ;;
    '') ;;
    *) die_usage "unknown argument $1" ;;
esac

# binutils: readelf. gcc, libc6-dev: Rust's linker, and the static C library. tmux: a terminal for
# tests. shellcheck: the style tier. valgrind: the instruction counts. jq: README's script. The rest
# is the lab: the VMM, the outer machine's init, its image, its modules, and what kernels are packed
# with.
PACKAGES=(binutils gcc libc6-dev tmux shellcheck valgrind jq
    qemu-system-x86 busybox-static cpio iproute2 kmod gzip xz-utils zstd lz4)

command -v dpkg-query >/dev/null ||
    die "this is not a Debian system; install what these packages hold: ${PACKAGES[*]}"
command -v cargo >/dev/null ||
    die "cargo is missing; install Rust 1.88 or newer with rustup, clippy and rustfmt included"

mapfile -t missing < <(missing_packages "${PACKAGES[@]}")
if [[ ${#missing[@]} -eq 0 ]]; then
    echo "setup.sh: everything is installed"
    exit 0
fi
if [[ -n $CHECK || $EUID -ne 0 ]]; then
    note "missing: ${missing[*]}"
    die "as root, run: apt-get update && apt-get install --no-install-recommends ${missing[*]}"
fi
echo "setup.sh: installing ${missing[*]}"
install_packages "${missing[@]}"

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

CHECK=
case ${1:-} in
    --help) usage; exit 0 ;;
    --check) CHECK=1 ;;
    '') ;;
    *) echo "setup.sh: unknown argument $1; see setup.sh --help" >&2; exit 2 ;;
esac

# binutils: readelf. gcc, libc6-dev: Rust's linker, and the static C library. The rest is the lab:
# the VMM, the outer machine's init, its image, its modules, and what kernels are packed with.
PACKAGES=(binutils gcc libc6-dev qemu-system-x86 busybox-static cpio iproute2 kmod gzip xz-utils zstd lz4)

command -v dpkg-query >/dev/null || {
    echo "setup.sh: this is not a Debian system; install what these packages hold: ${PACKAGES[*]}" >&2
    exit 1
}
command -v cargo >/dev/null || {
    echo "setup.sh: cargo is missing; install Rust 1.88 or newer with rustup, clippy and rustfmt included" >&2
    exit 1
}

missing=()
for package in "${PACKAGES[@]}"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [[ $status == installed ]] || missing+=("$package")
done

if [[ ${#missing[@]} -eq 0 ]]; then
    echo "setup.sh: everything is installed"
    exit 0
fi
install=(apt-get install --yes --no-install-recommends "${missing[@]}")
if [[ -n $CHECK || $EUID -ne 0 ]]; then
    echo "setup.sh: missing: ${missing[*]}" >&2
    echo "setup.sh: as root, run: apt-get update && ${install[*]}" >&2
    exit 1
fi
echo "setup.sh: installing ${missing[*]}"
apt-get update --quiet
DEBIAN_FRONTEND=noninteractive "${install[@]}"

#!/usr/bin/env bash
#
# Finds the QEMU that emulates the lab's outer machine.
#
# QEMU 7.2's emulation of AMD SVM shuts down a guest's processor now and then,
# or lets it stand still. So where the distribution's QEMU is older than 10,
# this script takes one from the distribution's backports and unpacks it into
# the cache. Nothing is installed, and apt's sources stay as they are.
#
# Run `emulator.sh --help` for usage, environment and exit status.

set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/emulator.sh

Prints the program that emulates the lab's outer machine, after fetching it if
needed: the distribution's qemu-system-x86_64 where that is version 10 or
newer, else the one of its backports, unpacked into the cache. Where neither
can be had, it says so and prints the distribution's program.

Environment:
  LAB_QEMU   a program to print instead
  LAB_CACHE  cache directory, default ${XDG_CACHE_HOME:-$HOME/.cache}/host-tool-lab

Exit status: 0 on success, 1 if there is no emulator, 2 for wrong usage.
USAGE
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

VERSION_MIN=10
PROGRAM=qemu-system-x86_64

# Prints the major version of the QEMU program $1.
major_version() {
    "$1" --version | sed --quiet --regexp-extended 's/^QEMU emulator version ([0-9]+).*/\1/p'
}

# Downloads QEMU and the packages that it needs in a newer version, into $WORK/archives.
download() {
    local codename uri
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    local -a apt=(apt-get "${APT_OPTIONS[@]}"
        --option "Dir::State::lists=$WORK/lists" --option "Dir::Cache=$WORK"
        --option "Dir::Etc::sourcelist=$WORK/sources.list")
    mkdir --parents "$WORK/lists/partial" "$WORK/archives/partial"
    cat /etc/apt/sources.list >"$WORK/sources.list" 2>/dev/null || : >"$WORK/sources.list"
    "${apt[@]}" update >&2 || return 1
    # The backports lie beside the distribution.
    uri=$("${apt[@]}" indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk -v codename="$codename" '$2 == codename && $3 == "main" { print $1; exit }')
    [[ -n $uri ]] || return 1
    echo "deb $uri $codename-backports main" >>"$WORK/sources.list"
    "${apt[@]}" update >&2 || return 1
    "${apt[@]}" install --yes --no-install-recommends --download-only \
        --target-release "$codename-backports" qemu-system-x86 >&2
}

# Unpacks a newer QEMU to $CACHE/qemu, with a script that starts it at $CACHE/qemu/$PROGRAM.
provide() {
    [[ ! -x $CACHE/qemu/$PROGRAM ]] || return 0
    make_work
    note "fetching QEMU $VERSION_MIN or newer from the distribution's backports"
    download || return 1
    local package tree=$WORK/tree
    mkdir "$tree"
    for package in "$WORK"/archives/*.deb; do
        dpkg-deb --extract "$package" "$tree"
    done
    rm --recursive --force "$tree/usr/share/doc" "$tree/usr/share/man"
    # Its firmware lies beside it, and so do libraries that it needs newer than they are installed.
    cat >"$tree/$PROGRAM" <<'WRAPPER'
#!/bin/sh
tree=$(dirname "$0")
LD_LIBRARY_PATH=$tree/usr/lib/x86_64-linux-gnu
export LD_LIBRARY_PATH
exec "$tree/usr/bin/qemu-system-x86_64" -L "$tree/usr/share/qemu" -L "$tree/usr/share/seabios" "$@"
WRAPPER
    chmod +x "$tree/$PROGRAM"
    [[ $(major_version "$tree/$PROGRAM") -ge $VERSION_MIN ]] || return 1
    rm --recursive --force "$CACHE/qemu"
    mv --no-target-directory "$tree" "$CACHE/qemu"
}

case ${1:-} in
    --help) usage; exit 0 ;;
    '') ;;
    *) die_usage "unknown argument $1" ;;
esac

if [[ -n ${LAB_QEMU:-} ]]; then
    need "$LAB_QEMU"
    echo "$LAB_QEMU"
    exit
fi
need "$PROGRAM"
if [[ $(major_version "$PROGRAM") -ge $VERSION_MIN ]]; then
    echo "$PROGRAM"
    exit
fi
make_cache
if under_lock "$CACHE/.qemu.lock" provide; then
    echo "$CACHE/qemu/$PROGRAM"
else
    note "there is no newer QEMU to be had; under $("$PROGRAM" --version | head --lines=1), guests now and then stand still"
    echo "$PROGRAM"
fi

#!/usr/bin/env bash
#
# Packs an initramfs whose only program is /init, with the kernel modules it needs.
#
# The modules are resolved here, on the build side, so that the image needs
# neither modprobe nor depmod: /etc/guest-agent/modules names one file per line
# in load order, and /init hands each to finit_module(2). Blank lines and lines
# that begin with '#' mean nothing there.
#
# The image is not compressed. Unpacking is the guest's work, and every test
# boots; a few megabytes read from the page cache cost less than inflating them.
#
# Run `mkinitramfs.sh --help` for usage, environment and exit status.

set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/mkinitramfs.sh --agent BIN --out FILE [OPTION]... [SRC:DEST]...

Writes an initramfs (newc cpio, uncompressed, the same bytes for the same
input) and prints its path. Needs no root.

  --agent BIN         the program that becomes /init; --init is the same
  --out FILE          the image to write
  --modules-from DIR  a /lib/modules/VERSION directory with its modules.dep,
                      default: the one that kernel.sh prints
  --module NAME       a kernel module to include together with what it depends
                      on; repeatable; the first one replaces the default list:
                      virtio_mmio vsock vmw_vsock_virtio_transport_common
                      vmw_vsock_virtio_transport
  --no-modules        include none
  --agent-json FILE   the agent's configuration, as /etc/guest-agent/agent.json
  --file SRC:DEST     a file to include at the absolute path DEST with SRC's
                      mode; repeatable; a bare SRC:DEST argument is the same
  --help              this text

Modules that the kernel has built in are skipped.

Environment: LAB_CACHE and LAB_KERNEL, as kernel.sh reads them.

Exit status: 0 on success, 1 if the image cannot be made, 2 for wrong usage.
USAGE
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Copies the file or symlink's target $1 to the absolute path $2 of the image.
add_file() {
    local source=$1 dest=$2
    [[ -f $source && -r $source ]] || die "cannot read the file $source"
    mkdir --parents "$TREE$(dirname "$dest")"
    cp --dereference --preserve=mode "$source" "$TREE$dest"
}

# Prints the files of module $1 and of all it depends on, in load order.
# modprobe only reads the index here. It is given no configuration, because
# this machine's blacklists and options say nothing about the guest.
module_files() {
    local name=$1 base=${MODULES_FROM%/lib/modules/*} verb file
    modprobe --config=/dev/null --dirname="$base" --set-version="${MODULES_FROM##*/}" \
        --show-depends "$name" >"$WORK/depends" 2>"$WORK/errors" ||
        die "no module '$name' for the kernel in $MODULES_FROM: $(tail --lines=1 "$WORK/errors")"
    while read -r verb file; do
        # The other verb is 'builtin': nothing to load.
        if [[ $verb == insmod ]]; then
            echo "${file%% *}"
        fi
    done <"$WORK/depends"
}

# Adds the modules named by the arguments and their list.
add_modules() {
    local name file dest
    local -a files=()
    local -A added=()
    mkdir --parents "$TREE/lib/modules"
    {
        echo "# Kernel modules for /init, in load order, of ${MODULES_FROM##*/}."
        for name in "$@"; do
            module_files "$name" >"$WORK/files"
            mapfile -t files <"$WORK/files"
            for file in "${files[@]}"; do
                dest=${file##*/}
                dest=/lib/modules/${dest%%.ko*}.ko
                if [[ -n ${added[$dest]:-} ]]; then
                    continue
                fi
                added[$dest]=yes
                # Not every kernel can inflate modules itself.
                case $file in
                    *.ko) cat "$file" ;;
                    *.ko.xz) xz --decompress --stdout "$file" ;;
                    *.ko.zst) zstd --decompress --stdout --quiet "$file" ;;
                    *.ko.gz) gzip --decompress --stdout "$file" ;;
                    *) die "$file is compressed in an unknown way" ;;
                esac >"$TREE$dest"
                echo "$dest"
            done
        done
    } >"$TREE/etc/guest-agent/modules"
}

AGENT=
OUT=
MODULES_FROM=
AGENT_JSON=
MODULES=(virtio_mmio vsock vmw_vsock_virtio_transport_common vmw_vsock_virtio_transport)
MODULES_ARE_DEFAULT=yes
FILES=()

while [[ $# -gt 0 ]]; do
    case $1 in
        --agent | --init | --out | --modules-from | --module | --agent-json | --file)
            [[ $# -ge 2 ]] || die_usage "$1 needs a value"
            ;;
    esac
    case $1 in
        --help) usage && exit 0 ;;
        --agent | --init) AGENT=$2 && shift ;;
        --out) OUT=$2 && shift ;;
        --modules-from) MODULES_FROM=$2 && shift ;;
        --module)
            if [[ $MODULES_ARE_DEFAULT == yes ]]; then
                MODULES=()
                MODULES_ARE_DEFAULT=no
            fi
            MODULES+=("$2") && shift
            ;;
        --no-modules)
            MODULES=()
            MODULES_ARE_DEFAULT=no
            ;;
        --agent-json) AGENT_JSON=$2 && shift ;;
        --file) FILES+=("$2") && shift ;;
        -*) die_usage "unknown option '$1'" ;;
        *) FILES+=("$1") ;;
    esac
    shift
done
[[ -n $AGENT ]] || die_usage "--agent is required"
[[ -n $OUT ]] || die_usage "--out is required"
for pair in "${FILES[@]}"; do
    [[ $pair == *?:/?* ]] || die_usage "'$pair' is not SRC:DEST with an absolute DEST"
done

need cpio
PATH=$PATH:/usr/sbin:/sbin
need modprobe

# Modes in the image must not depend on the caller's umask.
umask 022
make_work
NEW=$OUT.new.$$
trap 'rm --recursive --force "$WORK" "$NEW"' EXIT
TREE=$WORK/tree
mkdir --parents "$TREE"/{dev,etc/guest-agent,proc,run,sys,tmp}
chmod 1777 "$TREE/tmp"

add_file "$AGENT" /init
chmod 0755 "$TREE/init"

if [[ ${#MODULES[@]} -gt 0 ]]; then
    if [[ -z $MODULES_FROM ]]; then
        MODULES_FROM=$("$(dirname "${BASH_SOURCE[0]}")/kernel.sh" modules)
    fi
    [[ -d $MODULES_FROM ]] || die "no directory $MODULES_FROM"
    MODULES_FROM=$(realpath "$MODULES_FROM")
    [[ $MODULES_FROM == */lib/modules/* ]] ||
        die "$MODULES_FROM is not a /lib/modules/VERSION directory"
    add_modules "${MODULES[@]}"
fi

if [[ -n $AGENT_JSON ]]; then
    add_file "$AGENT_JSON" /etc/guest-agent/agent.json
    chmod 0644 "$TREE/etc/guest-agent/agent.json"
fi
for pair in "${FILES[@]}"; do
    add_file "${pair%%:/*}" "/${pair#*:/}"
done

# Device nodes would take root to make, and none is missed: the kernel brings
# its own /dev/console, and /init mounts devtmpfs over the rest.
find "$TREE" -exec touch --no-dereference --date=@0 {} +
mkdir --parents "$(dirname "$OUT")"
(
    cd "$TREE"
    find . -mindepth 1 -printf '%P\0' | LC_ALL=C sort --zero-terminated |
        cpio --null --create --format=newc --reproducible --owner=+0:+0 --quiet
) >"$NEW"
mv --force "$NEW" "$OUT"
echo "$OUT"

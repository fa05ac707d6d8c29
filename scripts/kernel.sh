#!/usr/bin/env bash
#
# Unpacks a stock Debian kernel for the microVM lab, without installing it.
#
# Nothing under /boot or /lib/modules is touched: the package is downloaded,
# unpacked into a cache directory, and an uncompressed ELF vmlinux is made
# beside it, because Firecracker and QEMU's microvm machine boot only that.
# A second call finds the cache and needs neither network nor apt.
#
# Run `kernel.sh --help` for usage, environment and exit status.

set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/kernel.sh [--refresh] [vmlinux|vmlinuz|modules|version|dir]

Prints where the lab's kernel is, after fetching and unpacking it if needed.
With a word, prints that one value; without, all of them as KEY=VALUE lines.

  vmlinux    the uncompressed ELF kernel
  vmlinuz    the kernel as Debian packages it
  modules    its /lib/modules/VERSION directory (with modules.dep)
  version    the kernel's version, as uname -r would print it
  dir        the cache directory that holds all of these

Options:
  --refresh  ask apt for the newest kernel even if one is already cached
  --help     this text

Environment:
  LAB_CACHE   cache directory, default ${XDG_CACHE_HOME:-$HOME/.cache}/host-tool-lab
  LAB_KERNEL  a package name, such as linux-image-6.1.0-50-amd64, or the path of
              a kernel .deb; default: the one that linux-image-amd64 depends on

Exit status: 0 on success, 1 if the kernel cannot be had, 2 for wrong usage.
USAGE
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Prints the package that the meta package currently stands for. A signed and
# an unsigned kernel carry the same version; the meta package knows which.
kernel_package() {
    apt-cache depends --no-recommends --no-suggests --no-conflicts \
        --no-breaks --no-replaces --no-enhances "$META_PACKAGE" 2>/dev/null |
        sed --quiet 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' |
        head --lines=1
}

# Downloads the package. The package lists may be absent (in a container image) or
# older than the archive. Updating them takes root and time, so it comes second.
fetch_package() {
    local wanted=$1 name
    need apt-get
    for attempt in first second; do
        name=${wanted:-$(kernel_package)}
        if [[ -n $name ]]; then
            note "downloading $name"
            if apt-get "${APT_OPTIONS[@]}" download "$name" >&2; then
                return
            fi
        fi
        if [[ $attempt == second ]]; then
            break
        fi
        if [[ $EUID -ne 0 ]]; then
            die "apt has no usable ${name:-$META_PACKAGE}; run 'apt-get update' as root, then try again"
        fi
        note "updating the package lists"
        apt-get --quiet=2 update >&2 || note "apt-get update failed; trying with the lists as they are"
    done
    die "cannot download ${name:-$META_PACKAGE}; set LAB_KERNEL to a package that 'apt-cache search linux-image' lists, or to a .deb file"
}

# Prints the little-endian unsigned integer of $3 bytes at offset $2 of file $1.
read_uint() {
    od --address-radix=n --endian=little --format="u$3" --skip-bytes="$2" --read-bytes="$3" "$1" |
        tr --delete ' '
}

# Makes the ELF vmlinux $2 from the bzImage $1.
#
# The x86 boot protocol (2.08 and later) says where the payload lies. A search
# for magic numbers could find some that are there by chance.
extract_vmlinux() {
    local image=$1 out=$2 setup_sectors offset length magic
    [[ $(dd if="$image" bs=1 skip=514 count=4 status=none) == HdrS ]] ||
        die "$image is not an x86 bzImage"
    setup_sectors=$(read_uint "$image" 497 1)
    offset=$(((setup_sectors + 1) * 512 + $(read_uint "$image" 584 4)))
    length=$(read_uint "$image" 588 4)

    local -a decompress
    magic=$(od --address-radix=n --format=x1 --skip-bytes="$offset" --read-bytes=4 "$image" | tr --delete ' ')
    case $magic in
        fd377a58) decompress=(xz --decompress --stdout --single-stream) ;;
        28b52ffd) decompress=(zstd --decompress --stdout --quiet) ;;
        1f8b*) decompress=(gzip --decompress --stdout) ;;
        02214c18) decompress=(lz4 -d -c) ;;
        *) die "$image is compressed in an unknown way (its payload begins with $magic)" ;;
    esac
    need "${decompress[0]}"

    # Four bytes with the uncompressed size follow the stream (gzip's are part of
    # it). Decompressors complain about them after they have written everything,
    # so the checks are the result's size and type.
    local expected
    expected=$(read_uint "$image" "$((offset + length - 4))" 4)
    tail --bytes="+$((offset + 1))" "$image" 2>/dev/null | head --bytes="$length" |
        "${decompress[@]}" >"$out" 2>/dev/null || true
    [[ $(stat --format=%s "$out") -eq $expected ]] ||
        die "decompressing $image with ${decompress[0]} gave $(stat --format=%s "$out") bytes instead of $expected"
    [[ $(od --address-radix=n --format=x1 --read-bytes=4 "$out" | tr --delete ' ') == 7f454c46 ]] ||
        die "the kernel inside $image is not an ELF file"
}

# Unpacks the package file $1 into the new directory $2.
#
# The cache keeps vmlinuz, vmlinux and the modules, less the drivers for
# hardware that no microVM has: they are three quarters of the package.
unpack() {
    local package=$1 dir=$2 version modules
    mkdir --parents "$dir/unpacked"
    dpkg-deb --fsys-tarfile "$package" |
        tar --extract --directory="$dir/unpacked" --no-same-owner \
            --exclude='*/kernel/sound' \
            --exclude='*/kernel/drivers/gpu' \
            --exclude='*/kernel/drivers/iio' \
            --exclude='*/kernel/drivers/infiniband' \
            --exclude='*/kernel/drivers/media' \
            --exclude='*/kernel/drivers/net/ethernet' \
            --exclude='*/kernel/drivers/net/wireless' \
            --exclude='*/kernel/drivers/staging' \
            --exclude='*/kernel/drivers/usb' \
            --exclude='*/usr/share'
    # Debian 13 ships the modules below /usr/lib, earlier releases below /lib.
    modules=$(find "$dir/unpacked" -path '*lib/modules/*' -prune -type d -print | head --lines=1)
    [[ -n $modules ]] || die "no modules in $package: is it a linux-image package?"
    version=${modules##*/}
    [[ -f $dir/unpacked/boot/vmlinuz-$version ]] || die "no boot/vmlinuz-$version in $package"

    mkdir --parents "$dir/lib/modules"
    mv "$modules" "$dir/lib/modules/$version"
    mv "$dir/unpacked/boot/vmlinuz-$version" "$dir/vmlinuz"
    rm --recursive --force "$dir/unpacked"
    extract_vmlinux "$dir/vmlinuz" "$dir/vmlinux"
    # The package leaves modules.dep to its installation script.
    depmod --basedir "$dir" "$version"
    echo "$version" >"$dir/version"
}

# Fetches the kernel that LAB_KERNEL stands for, and makes LINK lead to it.
provide() {
    local wanted=$LAB_KERNEL package name
    # Another caller may have fetched it meanwhile.
    [[ $REFRESH == yes || ! -e $LINK/version ]] || return 0
    need dpkg-deb
    need tar
    PATH=$PATH:/usr/sbin:/sbin
    need depmod
    # Beside the cache's other kernels, so that a rename moves what is unpacked here.
    TMPDIR=$CACHE/kernel make_work

    if [[ $wanted == *.deb ]]; then
        [[ -r $wanted ]] || die "cannot read LAB_KERNEL=$wanted"
        package=$(realpath "$wanted")
    else
        (cd "$WORK" && fetch_package "$wanted")
        package=$(find "$WORK" -maxdepth 1 -name '*.deb' -print -quit)
        [[ -n $package ]] || die "apt-get download left no package in $WORK"
    fi

    # Named after package and version, so that a refreshed kernel never
    # replaces files under a running lab.
    name=$(dpkg-deb --field "$package" Package)_$(dpkg-deb --field "$package" Version)
    if [[ ! -d $CACHE/kernel/$name ]]; then
        note "unpacking $name"
        unpack "$package" "$WORK/tree"
        mv --no-target-directory "$WORK/tree" "$CACHE/kernel/$name"
    fi
    ln --symbolic "$name" "$WORK/link"
    mv --force --no-target-directory "$WORK/link" "$LINK"
    note "using $CACHE/kernel/$name"
}

REFRESH=no
QUERY=all
while [[ $# -gt 0 ]]; do
    case $1 in
        --help) usage && exit 0 ;;
        --refresh) REFRESH=yes ;;
        vmlinux | vmlinuz | modules | version | dir) QUERY=$1 ;;
        *) die_usage "unknown argument '$1'" ;;
    esac
    shift
done

META_PACKAGE=linux-image-amd64
LAB_KERNEL=${LAB_KERNEL:-}
make_cache
mkdir --parents "$CACHE/kernel"

if [[ -n $LAB_KERNEL ]]; then
    KEY=$(basename "$LAB_KERNEL" .deb)
else
    KEY=default
fi
LINK=$CACHE/kernel/$KEY.current

if [[ $REFRESH == yes || ! -e $LINK/version ]]; then
    under_lock "$CACHE/kernel/.lock" provide
fi

DIR=$(realpath "$LINK")
VERSION=$(<"$DIR/version")
case $QUERY in
    vmlinux | vmlinuz) echo "$DIR/$QUERY" ;;
    modules) echo "$DIR/lib/modules/$VERSION" ;;
    version) echo "$VERSION" ;;
    dir) echo "$DIR" ;;
    all)
        echo "dir=$DIR"
        echo "version=$VERSION"
        echo "vmlinux=$DIR/vmlinux"
        echo "vmlinuz=$DIR/vmlinuz"
        echo "modules=$DIR/lib/modules/$VERSION"
        ;;
esac

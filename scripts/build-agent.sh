#!/usr/bin/env bash
#
# Builds guest-agent as one static, stripped binary.
#
# Run `build-agent.sh --help` for usage and exit status.

set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/build-agent.sh [--rustflags]

Builds the release agent and prints the path of the binary; everything else
goes to standard error. --rustflags prints the compiler's flags instead, for
programs that are compared with it. Links against musl where that Rust target is installed,
and otherwise statically against glibc, which makes it about half a megabyte
larger.

Exit status: 0 on success, 1 if the build fails or the result is not static.
USAGE
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

PRINT_FLAGS=
case ${1:-} in
    --help) usage; exit 0 ;;
    --rustflags) PRINT_FLAGS=1 ;;
    '') ;;
    *) die_usage "unknown argument $1" ;;
esac

cd "$TOP"

# rustup and distributions install a target's library to the same place.
has_target() {
    [[ -d $(rustc --print sysroot)/lib/rustlib/$1/lib ]]
}

machine=$(uname --machine)
target=$machine-unknown-linux-musl
has_target "$target" || target=$machine-unknown-linux-gnu

# At a fixed address: nothing is relocated at start, so the agent writes to no page of tables before
# the first request, and the file is 57 KB smaller.
#
# A panic aborts and nothing is ever unwound, so the index of unwinding tables can go: another 19 KB.
#
# Identical functions are kept once: another 9 KB. Nothing in the agent compares the addresses of
# functions. lld and gold can do this, GNU ld cannot, so an empty program is linked to try it.
fold=-Clink-arg=-Wl,--icf=all
make_work
# shellcheck disable=SC2086 # RUSTFLAGS is a list of words.
rustc ${RUSTFLAGS:-} --target "$target" "$fold" -o "$WORK/empty" - <<<'fn main() {}' 2>/dev/null ||
    fold=

# With --target, RUSTFLAGS reach the agent only and not build scripts and macros, which must stay
# dynamic to be loaded by the compiler.
flags="${RUSTFLAGS:-} -C target-feature=+crt-static -C relocation-model=static -C link-arg=-Wl,--no-eh-frame-hdr $fold"
if [[ -n $PRINT_FLAGS ]]; then
    echo "$flags"
    exit
fi
RUSTFLAGS=$flags cargo build --quiet --locked --release --package agent --bin guest-agent \
    --target "$target" >&2

binary=${CARGO_TARGET_DIR:-$TOP/target}/$target/release/guest-agent
if readelf --wide --program-headers "$binary" | grep --quiet INTERP; then
    die "$binary wants a dynamic linker; is another linker set in a cargo configuration?"
fi
echo "$binary"

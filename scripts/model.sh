#!/usr/bin/env bash
#
# Explores the handshake and writes what came of it into docs/model.md.
#
# Run `model.sh --help` for usage and exit status.

set -euo pipefail

usage() {
    cat <<'USAGE'
Usage: scripts/model.sh

Explores every scenario of tests/model and every defect, and replaces the
figures and counter-examples in docs/model.md. Takes a minute on two cores.

Exit status: 0 when everything was explored, 1 otherwise, 2 for wrong usage.
USAGE
}

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

case ${1-} in
    '') ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
esac

cd "$TOP"
make_work

sed '/^<!-- What follows is written/q' docs/model.md >"$WORK/page"
echo >>"$WORK/page"
cargo run --quiet --locked --profile model --package model >>"$WORK/page"
cp "$WORK/page" docs/model.md

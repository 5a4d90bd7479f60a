#!/bin/sh
# Counts instructions by valgrind. Unlike times they do not depend on what else the machine does: compare them before and
# after a change.
#
#   benches/instructions.sh [--clients N ...] [--protocol simple|extended|prepared ...] [--transactions N] [--keep DIR]
#                           [--only halyard|pgbouncer]
#       of the whole process, Halyard's and PgBouncer's, in user space, for one select-only transaction
#   benches/instructions.sh --pure
#       of framing, ledger and classification alone (gungraun, whose runner is installed into the target folder)
set -eu
cd "$(dirname "$0")/.."

command -v valgrind >/dev/null 2>&1 || {
    echo "instructions: valgrind is missing: run cluster/deps.sh bench" >&2
    exit 1
}

if [ "${1-}" = --pure ]; then
    shift
    # Library and runner speak to each other: they have to be of one version.
    version=$(sed -n '/^name = "gungraun"$/{n;s/^version = "\(.*\)"$/\1/p;}' Cargo.lock)
    tools=${CARGO_TARGET_DIR:-$PWD/target}/tools
    if [ "$("$tools/bin/gungraun-runner" --version 2>/dev/null)" != "gungraun-runner $version" ]; then
        cargo install --locked --quiet --root "$tools" --target-dir "$tools" --version "$version" gungraun-runner
    fi
    PATH="$tools/bin:$PATH" exec cargo bench --locked --bench instructions "$@"
fi

cargo build --release --locked --bin halyard
exec python3 -B benches/side_by_side/instructions.py --binary "${CARGO_TARGET_DIR:-target}/release/halyard" "$@"

#!/bin/sh
# Counts the instructions that Halyard and PgBouncer spend in user space on one transaction, by valgrind.
#
#   benches/instructions.sh [--clients N ...] [--protocol simple|extended|prepared ...] [--transactions N] [--keep DIR]
#                           [--only halyard|pgbouncer]
#
# Unlike times these figures do not depend on what else the machine does: compare them before and after a change.
set -eu
cd "$(dirname "$0")/.."

cargo build --release --locked --bin halyard
exec python3 -B benches/side_by_side/instructions.py --binary "${CARGO_TARGET_DIR:-target}/release/halyard" "$@"

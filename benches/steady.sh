#!/bin/sh
# Runs pgbench for a minute in every mode, 64 clients over 16 connections to each node, through a real cluster's port, and
# fails on any failed transaction, any error, any read on the primary and any write sent to a standby.
#
#   benches/steady.sh                       six runs of SECONDS_PER_RUN [60] seconds
#
# Figures are by the way here: benches/run.sh makes those.
set -eu
cd "$(dirname "$0")/.."

cargo build --release --locked --bin halyard
exec python3 -B benches/side_by_side/steady.py --binary "${CARGO_TARGET_DIR:-target}/release/halyard" \
    --seconds "${SECONDS_PER_RUN:-60}" "$@"

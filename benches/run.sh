#!/bin/sh
# Measures Halyard beside PgBouncer and direct connections, by pgbench, and writes benches/RESULTS.md.
#
#   benches/run.sh [--seconds N] [--rounds N] [--scale N] [--only REGEX] [--base-port P] [--no-cluster] [--output FILE]
#   QUICK=1 benches/run.sh                  a look in three minutes, whose figures are not worth quoting
#
# The other benches are run by hand:
#   cargo bench                             the pure parts: wire, classify, routing (criterion)
#   benches/instructions.sh                 instructions per transaction of the whole process (valgrind)
#
# Wants a machine that does nothing else. Everything runs on the loopback address, as the user postgres when root
# starts it, in a temporary folder that is gone afterwards.
set -eu
cd "$(dirname "$0")/.."

cargo build --release --locked --bin halyard
# -B: no folders of compiled Python in the source.
exec python3 -B benches/side_by_side --binary "${CARGO_TARGET_DIR:-target}/release/halyard" "$@"

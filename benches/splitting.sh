#!/bin/sh
# Measures what splitting reads from writes costs and gives, through a real cluster's port:
#
#   - CPU of Halyard per transaction of select-only, once as it is by default and once with halyard.route = 'primary', which
#     neither looks at what a statement does nor at what it has to see: pairs of short runs in each protocol;
#   - how much of the reads of a mixed load (nine reads for each write, in the same sessions) the standbys take, at several
#     rates, and how fast it gets beside the primary alone.
#
#   benches/splitting.sh [--seconds N] [--rounds N] [--scale N] [--base-port P] [--output FILE]
#
# Wants a machine that does nothing else, for about eight minutes besides building. Writes benches/SPLITTING.md.
set -eu
cd "$(dirname "$0")/.."

cargo build --release --locked --bin halyard
exec python3 -B benches/side_by_side/splitting.py --binary "${CARGO_TARGET_DIR:-target}/release/halyard" "$@"

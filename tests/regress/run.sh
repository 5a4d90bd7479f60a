#!/bin/sh
# Runs PostgreSQL's own regression suite and libpq's own test of pipelines, directly and through Halyard in transaction
# pooling, and writes docs/regress.md. What `make regress` calls.
#
#   tests/regress/run.sh [--pool-size N] [--binary FILE] [--output FILE]
#
# Fails if a file fails that expected_failures.toml does not explain, or if one passes that ought to fail by it. Inputs
# are fetched from Debian once and kept in the target folder. Everything runs on the loopback address, as the user
# postgres when root starts it, in a temporary folder that is gone afterwards.
set -eu
cd "$(dirname "$0")/../.."

target=${CARGO_TARGET_DIR:-target}
tests/regress/inputs.sh "$target/regress"
case " $* " in
    *" --binary"*) ;;
    *)
        cargo build --release --locked --bin halyard
        set -- --binary "$target/release/halyard" "$@"
        ;;
esac
# -B: no folders of compiled Python in the source.
exec python3 -B tests/regress --inputs "$target/regress" "$@"

#!/bin/sh
# Runs everything that can be checked of Halyard: formatting, lints, unit and property tests, and the integration tests
# against real clusters. What `make test` calls; it installs what is missing.
#
# The integration tests are one program (tests/integration.rs), so that they share one cluster. `cargo nextest` would
# give each test a process, and so a cluster, of its own: this is for `cargo test`.
set -eu
cd "$(dirname "$0")/.."

# The servers of two tests at a time are what two cores carry.
export RUST_TEST_THREADS="${RUST_TEST_THREADS:-2}"

began=$(date +%s)
passed=0
failed=
report=
# What the sections say, each in a file, so that the end can tell again what failed.
said=$(mktemp -d)
trap 'rm -rf "$said"' EXIT

section() {
    name=$1
    shift
    : >"$said/failed"
    printf '\n== %s\n' "$name"
    since=$(date +%s)
    # Not where services are installed: they would hold on to the pipe.
    case $1 in
    cluster/deps.sh) "$@" && rm "$said/failed" && : >"$said/output" ;;
    *) { "$@" && rm "$said/failed"; } 2>&1 | tee "$said/output" ;;
    esac || :
    if [ ! -e "$said/failed" ]; then
        passed=$((passed + 1))
        outcome=passed
    else
        failed="$failed $name,"
        outcome=FAILED
        {
            printf '\n== %s, what failed\n' "$name"
            # The words of what failed, as cargo tells them; or else how it ended.
            sed -n '/^failures:$/,$p' "$said/output" >"$said/words"
            [ -s "$said/words" ] || tail -n 40 "$said/output" >"$said/words"
            head -c 16384 "$said/words"
        } >>"$said/failures"
    fi
    report="$report$(printf '\n  %-22s %s in %s s' "$name" "$outcome" $(($(date +%s) - since)))"
}

lints() { cargo clippy --workspace --all-targets --locked --quiet -- -D warnings; }
unit_tests() { cargo test --workspace --locked --lib --bins --quiet; }
other_tests() { cargo test --workspace --locked --test real_servers --quiet; }

integration() { cargo test --locked --test integration; }
drills() { cargo test --locked --test drills; }
# The same faults in every run.
chaos() { cargo test --locked --test histories --quiet && cargo test --locked --test chaos; }
differential() { cargo test --locked --test differential; }
# Says what it has tried, and whether PostgreSQL's suite was there to try.
oracle() { cargo test --locked --test oracle -- --nocapture && cargo test --locked --test allocations --quiet; }
documentation() { cargo test --locked --test documents --quiet && cargo test --workspace --locked --doc --quiet; }

section 'Debian packages' cluster/deps.sh test regress
section 'drivers for Python' tests/python/venv.sh
section 'drivers for Node' tests/node/modules.sh
section 'formatting' cargo fmt --all --check
section 'lints' lints
section 'unit tests' unit_tests
section 'control plane' other_tests
section 'integration tests' integration
section 'against a server' differential
section 'failover drills' drills
section 'faults by chance' chaos
section 'reads on a standby' oracle
section 'documentation' documentation

printf '\n== summary%s\n' "$report"
took=$(($(date +%s) - began))
if [ -n "$failed" ]; then
    cat "$said/failures"
    # Again at the very end, which is what is left where only that is kept.
    sed -n '/ panicked at /,+3p' "$said/failures" | head -c 4096
    printf '\ntests failed after %s s:%s\n' "$took" "${failed%,}"
    exit 1
fi
printf '\nall %s sections passed in %s s\n' "$passed" "$took"

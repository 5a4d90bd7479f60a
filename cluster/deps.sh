#!/bin/sh
# Installs what the cluster (demo), the tests, PostgreSQL's own tests (regress) and the benches need, from Debian's packages.
#
#   cluster/deps.sh [demo] [test] [regress] [bench]      demo when nothing is named
#
# Says nothing when nothing is missing. Starts no service and makes no PostgreSQL cluster of Debian's: Halyard's
# clusters are its own processes in folders of their own.
set -eu

demo='postgresql-15 postgresql-client-15 pg-auto-failover-cli postgresql-15-auto-failover gcc libc6-dev'
test='libpq-dev python3-venv openssl prometheus'
# Debian's npm is a package of its own, and brings many; other packages of nodejs have npm in them.
command -v npm >/dev/null 2>&1 || test="$test nodejs npm"
# The servers of `regress` are unpacked, not installed: postgresql-15 is there for the libraries that they need.
regress='dpkg-dev bzip2 xz-utils diffutils python3'
bench='pgbouncer python3 valgrind'

die() {
    echo "deps: $*" >&2
    exit 1
}

wanted=
[ $# -gt 0 ] || set -- demo
for group in "$@"; do
    case $group in
        demo) wanted="$wanted $demo" ;;
        test) wanted="$wanted $demo $test" ;;
        regress) wanted="$wanted $demo $regress" ;;
        bench) wanted="$wanted $demo $bench" ;;
        *) die "unknown group '$group': demo, test, regress and bench are known" ;;
    esac
done

command -v cargo >/dev/null 2>&1 ||
    die "Rust is missing: install it by rustup (https://rustup.rs), then run this again"
command -v dpkg-query >/dev/null 2>&1 && command -v apt-get >/dev/null 2>&1 ||
    die "this is no Debian: install PostgreSQL 15 and pg_auto_failover 2 by its own means"

missing=
for package in $wanted; do
    case " $missing " in *" $package "*) continue ;; esac
    dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
        missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -eq 0 ]; then
    as_root=
elif command -v sudo >/dev/null 2>&1; then
    as_root=sudo
else
    die "missing:$missing; run this as root, or install sudo"
fi

log=$(mktemp)
policy=/usr/sbin/policy-rc.d
made_policy=
clean_up() {
    [ -z "$made_policy" ] || $as_root rm -f "$policy"
    rm -f "$log"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# What a package's scripts ask before they start a service; 101 forbids it. Only for the time of the install.
if [ ! -e "$policy" ]; then
    made_policy=yes
    printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null
    $as_root chmod 755 "$policy"
fi

# Keeps the server package from making and running a cluster "main" on port 5432. A drop-in, since the file
# itself belongs to postgresql-common. A machine that has a server already keeps its own ways.
drop_in=/etc/postgresql-common/createcluster.d/halyard.conf
case " $missing " in
    *" postgresql-15 "*)
        if [ ! -e "$drop_in" ]; then
            $as_root mkdir -p "${drop_in%/*}"
            printf '# Written by Halyard'"'"'s cluster/deps.sh.\ncreate_main_cluster = false\n' |
                $as_root tee "$drop_in" >/dev/null
        fi
        ;;
esac

# A step that says how long it took, and shows its output only when it fails.
step() {
    what=$1
    shift
    printf 'deps: %s …' "$what"
    began=$(date +%s)
    if "$@" >"$log" 2>&1 </dev/null; then
        echo " $(($(date +%s) - began)) s"
    else
        echo " failed"
        tail -n 15 "$log" >&2
        die "$what failed; is a Debian mirror reachable, and does no other apt run?"
    fi
}

step 'reading the lists of packages' $as_root apt-get -q update
# shellcheck disable=SC2086  # a list of packages is meant to be split
step "installing$missing" $as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get -q -y --no-install-recommends -o DPkg::Lock::Timeout=300 install $missing

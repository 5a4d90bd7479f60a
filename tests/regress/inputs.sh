#!/bin/sh
# Makes ready what the regression suite needs, in the folder that is named, unless it is there already:
#
#   usr/             the server, psql, pg_regress and libpq, unpacked from Debian's packages
#   regress/         sql/, expected/, data/ and the schedule, from Debian's source package of PostgreSQL 15
#   lib/             regress.so, the functions in C that the suite loads, and two of contrib's that it uses
#   libpq_pipeline, traces/   libpq's own test of pipelines, and what it is expected to say and hear
#   scanner          PostgreSQL's own scanner as a program (tests/c/scanner.c)
#   version          of all of them; written last
#
# The suite is made for one version: even the next minor release may answer differently, in psql as in the server. So
# everything comes from the newest version that there is as source *and* as binaries, whatever is installed. apt checks
# what it fetches against the archive's signature; its lists and files stay in the folder, and nothing is installed.
set -eu
umask 022

die() {
    echo "inputs: $*" >&2
    exit 1
}

[ $# -eq 1 ] || die "usage: inputs.sh FOLDER"
mkdir -p "$1"
folder=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")/.." && pwd)
[ ! -e "$folder/version" ] || [ "$here/c/scanner.c" -nt "$folder/scanner" ] || exit 0

work=$folder/work
rm -rf "$folder/version" "$folder/usr" "$folder/regress" "$folder/lib" "$folder/traces" "$work"
mkdir -p "$work/lists/partial" "$work/packages" "$work/unpacked"
trap 'rm -rf "$work"' EXIT

# The archives of Debian that this machine uses already, with their sources, which most machines leave out.
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' | sort -u |
    while read -r archive; do
        printf 'deb [signed-by=%s] %s\ndeb-src [signed-by=%s] %s\n' "$keyring" "$archive" "$keyring" "$archive"
    done >"$work/sources.list"
[ -s "$work/sources.list" ] || die "apt knows no archive of Debian; run 'apt-get update' once"

apt() {
    command=$1
    shift
    "$command" -qq -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root "$@"
}

echo 'inputs: reading the lists of sources'
apt apt-get update
cd "$work/packages"
fetch() {
    apt apt-get source --download-only "postgresql-15=$1" &&
        for package in postgresql-15 postgresql-client-15 postgresql-server-dev-15 libpq5 libpq-dev; do
            apt apt-get download "$package=$1" || return 1
        done
}
version=
for candidate in $(apt apt-cache showsrc postgresql-15 | sed -n 's/^Version: //p' | sort -Vru); do
    if fetch "$candidate" >"$work/log" 2>&1; then
        version=$candidate
        break
    fi
    # A mirror may list a release whose files it has not.
    echo "inputs: $candidate is not to be had whole"
    rm -f ./*
done
[ -n "$version" ] || die "no version of postgresql-15 can be fetched: $(tail -n 3 "$work/log")"
echo "inputs: building for PostgreSQL $version"
for package in ./*.deb; do
    dpkg-deb --extract "$package" "$work/unpacked"
done
dpkg-source --no-check --extract "postgresql-15_$version.dsc" "$work/source" >"$work/log" 2>&1 ||
    die "unpacking the source failed: $(tail -n 3 "$work/log")"

unpacked=$work/unpacked/usr
server=$unpacked/lib/postgresql/15
headers=$unpacked/include/postgresql
tests=$work/source/src/test
libraries=$(dirname "$(find "$unpacked/lib" -name libpq.so)")

mkdir -p "$folder/usr/lib" "$folder/usr/share" "$folder/lib"
gcc -O2 -fPIC -shared -DDLSUFFIX='".so"' -I"$headers/15/server" -o "$folder/lib/regress.so" "$tests/regress/regress.c"
gcc -O2 -I"$headers/15/server" -I"$headers" -o "$folder/libpq_pipeline" \
    "$tests/modules/libpq_pipeline/libpq_pipeline.c" -L"$libraries" -L"$server/lib" -lpq -lpgcommon -lpgport

gcc -O2 -I"$headers/15/server" -I"$headers/internal" -o "$folder/scanner" "$here/c/scanner.c" \
    "$work/source/src/backend/parser/scan.c" "$work/source/src/backend/parser/scansup.c" \
    -L"$server/lib" -lpgcommon -lpgport

cp -R "$tests/modules/libpq_pipeline/traces" "$folder/traces"
cp -R "$tests/regress" "$folder/regress"
cp "$server/lib/autoinc.so" "$server/lib/refint.so" "$folder/lib"
cp -P "$libraries"/libpq.so.* "$folder/lib"
# The server finds its files by the way from bin/ to them.
cp -R "$unpacked/lib/postgresql" "$folder/usr/lib"
cp -R "$unpacked/share/postgresql" "$folder/usr/share"
echo "$version" >"$folder/version"

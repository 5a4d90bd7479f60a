#!/bin/sh
# Makes the virtual environment with the drivers of requirements.txt, unless it is there already, and prints its folder.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
venv=${HALYARD_TEST_VENV:-$here/../../.venv}
mkdir -p "$venv"
venv=$(cd "$venv" && pwd)

# Two runs at a time make it once.
exec 9<"$here/requirements.txt"
flock 9
if ! cmp -s "$here/requirements.txt" "$venv/requirements.installed"; then
    python3 -m venv --clear "$venv" >&2
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt" >&2
    cp "$here/requirements.txt" "$venv/requirements.installed"
fi
echo "$venv"

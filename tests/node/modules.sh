#!/bin/sh
# Installs the drivers of package-lock.json into node_modules beside it, unless they are there already.
set -eu
cd "$(dirname "$0")"

# Two runs at a time install once.
exec 9<package-lock.json
flock 9
installed=node_modules/package-lock.installed
if ! cmp -s package-lock.json "$installed"; then
    npm ci --omit=dev --ignore-scripts --no-audit --no-fund --loglevel=error >&2
    cp package-lock.json "$installed"
fi

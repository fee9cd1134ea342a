#!/bin/sh
# venv.sh REQUIREMENTS NAME: makes the Python environment .cache/e2e-NAME, once for each state of the requirements, and prints
# its folder.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
venv=$root/.cache/e2e-$2
mark=$venv/installed-requirements.txt
if ! cmp -s "$1" "$mark"; then
    rm -rf "$venv"
    # Debian keeps venv in a package of its own; virtualenv serves as well where that one is there.
    if ! python3 -m venv "$venv" >&2; then
        echo "e2e: python3 cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2
        exit 1
    fi
    # The proxy variables are for the tests' requests; pip's go the usual way.
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$1" >&2
    cp "$1" "$mark"
fi
echo "$venv"

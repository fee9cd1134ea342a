#!/bin/sh
# Makes the Python environment of these tests, once for each state of requirements.txt, and prints its folder.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
venv=$root/.cache/e2e-venv
mark=$venv/installed-requirements.txt
if ! cmp -s "$here/requirements.txt" "$mark"; then
    rm -rf "$venv"
    # Debian keeps venv in a package of its own; virtualenv serves as well where that one is there.
    if ! python3 -m venv "$venv" >&2; then
        echo "e2e: python3 cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2
        exit 1
    fi
    # The proxy variables are for the tests' requests; pip's go the usual way.
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement "$here/requirements.txt" >&2
    cp "$here/requirements.txt" "$mark"
fi
echo "$venv"

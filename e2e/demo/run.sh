#!/bin/sh
# Real clients (curl, Python's grpcio, websockets) against the demo's three nodes. Builds, makes the Python environment,
# then each test file starts `posthouse-demo --idle` for itself and ends it. The last line is `N passed, N failed`.
# Arguments go to pytest. POSTHOUSE_BIN names a folder with ready programs instead of building them.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
if [ -z "${POSTHOUSE_BIN:-}" ]; then
    (cd "$root" && cargo build --quiet --package posthouse --package posthouse-testkit --bins)
    POSTHOUSE_BIN=${CARGO_TARGET_DIR:-$root/target}/debug
fi
export POSTHOUSE_BIN
venv=$("$here/venv.sh")
# What the caller has set must not lead the tests' own requests elsewhere.
unset http_proxy https_proxy no_proxy grpc_proxy no_grpc_proxy all_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY
export PYTHONDONTWRITEBYTECODE=1
cd "$here"
exec "$venv/bin/python" -m pytest --quiet -p no:cacheprovider "$@"

#!/bin/sh
# Two nodes that talk IPv6 (then both families), in a network namespace of their own: fd77::/16 on its loopback interface,
# nothing else on the machine is touched. Needs root, unshare and setpriv (util-linux), ip and ss (iproute2), python3 and curl.
# The last line is `N passed, N failed`. Arguments choose tests by a part of their name. POSTHOUSE_BIN names a folder with
# ready programs instead of building them.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
stop() {
    echo "e2e/ipv6: $1" >&2
    exit 1
}
[ "$(id -u)" = 0 ] || stop "a network namespace needs root; run this as root"
for program in unshare:util-linux setpriv:util-linux ip:iproute2 ss:iproute2 python3:python3 curl:curl; do
    command -v "${program%:*}" >/dev/null || stop "'${program%:*}' is missing; on Debian: apt-get install ${program#*:}"
done
unshare --net true 2>/dev/null || stop "this system allows no new network namespace (in a container: --privileged)"
if [ -z "${POSTHOUSE_BIN:-}" ]; then
    (cd "$root" && cargo build --quiet --package posthouse --package posthouse-testkit --bins)
    POSTHOUSE_BIN=${CARGO_TARGET_DIR:-$root/target}/debug
fi
export POSTHOUSE_BIN
# What the caller has set must not lead the tests' own requests elsewhere.
unset http_proxy https_proxy no_proxy all_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY
export PYTHONDONTWRITEBYTECODE=1
# wire.py, HTTP by hand, is the demo's.
export PYTHONPATH="$root/e2e/demo"
exec unshare --net python3 "$here/test_ipv6.py" "$@"

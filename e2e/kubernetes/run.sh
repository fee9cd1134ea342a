#!/usr/bin/env bash
# run.sh [pytest's arguments]: the tests on a real cluster; what `make e2e` runs.
#   E2E_CLUSTER=own (default)   brings up e2e/cluster on this machine (root) and takes it down at the end, whatever happens;
#                               E2E_KEEP=1 leaves it up for a look.
#   E2E_CLUSTER=existing        uses the cluster of KUBECONFIG (kind, k3d, ...): docs/install.md says how to load the images.
# Images: those that `make image` wrote to target/image, which it is asked to do unless E2E_IMAGES names a folder with them.
# The last line is `N passed, N failed`; the measured numbers stand above it and in target/e2e/report.json.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd); root=$(cd "$here/../.." && pwd)
cluster=${E2E_CLUSTER:-own}
images=${E2E_IMAGES:+$(cd "$E2E_IMAGES" && pwd)}
if [ -z "$images" ]; then
    make -C "$root" --no-print-directory image
    images=${CARGO_TARGET_DIR:-$root/target}/image
fi
bin=$("$root/e2e/cluster/build.sh")
[ -n "${E2E_IMAGES:-}" ] && [ -f "$images/grpc-client.tar" ] || "$root/e2e/cluster/kube/grpcclient/image.sh" "$images/grpc-client.tar"
export HELM=$bin/helm KUBECTL=$bin/kubectl E2E_CLUSTER=$cluster E2E_IMAGES=$images
venv=$("$here/venv.sh")

case $cluster in
own)
    [ "$(id -u)" = 0 ] || { echo 'e2e: root is needed for the network namespaces of the nodes (or E2E_CLUSTER=existing)' >&2; exit 1; }
    export CLUSTER_DIR=${CLUSTER_DIR:-/var/lib/posthouse-e2e} PROXY=1
    export KUBECONFIG=$CLUSTER_DIR/pki/admin.conf
    down() { [ "${E2E_KEEP:-0}" = 1 ] || "$root/e2e/cluster/down.sh"; }
    trap down EXIT
    trap 'exit 130' INT TERM
    "$root/e2e/cluster/down.sh"     # what a run before this one left behind
    mkdir -p "$CLUSTER_DIR/images"
    cp "$images"/*.tar "$CLUSTER_DIR/images/"
    "$root/e2e/cluster/up.sh"
    ;;
existing)
    "$bin/kubectl" version >/dev/null || { echo 'e2e: KUBECONFIG names no cluster that answers' >&2; exit 1; }
    ;;
*) echo "e2e: E2E_CLUSTER is 'own' or 'existing', not '$cluster'" >&2; exit 64 ;;
esac
# What the caller has set must not lead the tests' own requests elsewhere.
unset http_proxy https_proxy no_proxy all_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY
export PYTHONDONTWRITEBYTECODE=1
cd "$here"
"$venv/bin/python" -m pytest --quiet -p no:cacheprovider "$@"

#!/usr/bin/env bash
# build.sh: builds the cluster's programs (kube/, one binary) once and prints the folder that holds them.
# Kept outside of the tree, keyed by what goes into it: some 15 CPU minutes the first time, nothing after that.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/kube"

key=$(cat go.mod go.sum ./*.go ../build.sh | sha256sum | cut -c1-16)
cache=${POSTHOUSE_E2E_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/posthouse-e2e}
bin=$cache/kube-$key
if [ ! -x "$bin/helm" ]; then
    # 1.27's default JSON experiment breaks /openapi/v2, on which kubectl apply and Helm depend.
    case $(go env GOVERSION 2>/dev/null) in
    go1.26*) ;;
    *) echo "e2e: Go 1.26 is needed to build Kubernetes (found: $(go version 2>/dev/null || echo none))" >&2; exit 1 ;;
    esac
    version=$(awk '$1 == "k8s.io/kubernetes" { print $2; exit }' go.mod)
    helm=$(awk '$1 == "helm.sh/helm/v4" { print $2; exit }' go.mod)
    echo "e2e: building Kubernetes $version, etcd and Helm $helm into $bin (some 15 CPU minutes, once)" >&2
    minor=${version#v1.}; minor=${minor%%.*}
    # Without these the API server says v0.0.0-master, and clients refuse to talk to it.
    flags="-s -w -X helm.sh/helm/v4/internal/version.version=$helm"
    for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
        flags="$flags -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$minor"
        flags="$flags -X $package.gitCommit=$key -X $package.gitTreeState=clean -X $package.buildDate=2026-01-01T00:00:00Z"
    done
    mkdir -p "$cache"
    next=$(mktemp -d "$cache/kube-next.XXXXXX")
    trap 'rm -rf "$next"' EXIT
    CGO_ENABLED=0 go build -mod=readonly -trimpath -ldflags "$flags" -o "$next/kube" . >&2
    for name in etcd helm kubectl kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet; do
        ln -s kube "$next/$name"
    done
    chmod 755 "$next"
    mv -T "$next" "$bin" 2>/dev/null || [ -x "$bin/helm" ]   # another run may have been faster
    trap - EXIT
fi
echo "$bin"

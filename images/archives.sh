#!/bin/sh
# archives.sh FOLDER: the images of posthouse and of the tests' workloads as archives, made without Docker. $IMAGE and
# $WORKLOADS_IMAGE are their names. The same commit and the same toolchain make the same bytes.
set -eu
out=${1:?usage: archives.sh FOLDER}
here=$(cd "$(dirname "$0")" && pwd)

revision=$(git -C "$here" describe --always --dirty --abbrev=40 --exclude '*' 2>/dev/null || echo unknown)
# The program tells its commit; POSTHOUSE_COMMIT= saves the link that each new commit costs otherwise.
export POSTHOUSE_COMMIT="${POSTHOUSE_COMMIT-$revision}"
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$here" log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH
"$here/build.sh" "$out/bin"

version=$("$out/bin/posthouse" --version | cut -d ' ' -f 2)
oci=org.opencontainers.image
"$here/mkimage.py" --output "$out/posthouse.tar" --name "$IMAGE" \
    --entrypoint /posthouse --file "/posthouse=$out/bin/posthouse" \
    --label "$oci.title=Posthouse" \
    --label "$oci.description=A per-node proxy that makes a Kubernetes cluster a service mesh without sidecars" \
    --label "$oci.licenses=Apache-2.0" --label "$oci.version=$version" --label "$oci.revision=$revision"
"$here/mkimage.py" --output "$out/workloads.tar" --name "$WORKLOADS_IMAGE" \
    --entrypoint /app --file "/app=$out/bin/posthouse-demo-app" \
    --label "$oci.title=Posthouse demo workloads" \
    --label "$oci.licenses=Apache-2.0" --label "$oci.version=$version" --label "$oci.revision=$revision"

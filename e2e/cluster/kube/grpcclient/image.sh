#!/bin/sh
# image.sh ARCHIVE [NAME]: the client as a container image, made like Posthouse's own (images/mkimage.py).
set -eu
archive=${1:?usage: image.sh ARCHIVE [NAME]}
name=${2:-posthouse.invalid/grpc-client:dev}
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
(cd "$here" && CGO_ENABLED=0 go build -mod=readonly -trimpath -buildvcs=false -ldflags '-s -w' -o "$folder/grpcclient" .)
"$here/../../../../images/mkimage.py" --output "$archive" --name "$name" --entrypoint /app --file "/app=$folder/grpcclient"

#!/usr/bin/env python3
"""Writes a container image of one static program and a few files, without Docker or root: a tar archive that `docker load`,
`podman load`, `ctr images import` and `kind load image-archive` take, and that is an OCI image layout, too (skopeo, crane).

The same input makes the same bytes: owners, modes and times are fixed, the time is SOURCE_DATE_EPOCH's (0 without it).

    mkimage.py --output web.tar --name example.invalid/web:dev --entrypoint /web --file /web=target/web
"""

import argparse
import datetime
import hashlib
import io
import json
import os
import re
import struct
import sys
import tarfile
from pathlib import Path, PurePosixPath

# A user of our own, the one of the chart: a cluster that asks for runAsNonRoot wants a number.
USER = "41404:41404"
# ELF's e_machine (offset 18) and what images call it.
ARCHITECTURES = {62: "amd64", 183: "arm64"}
PT_INTERP = 3
# [domain[:port]/]path[:tag], in lower case as registries want it.
PART = r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*"
NAME = re.compile(rf"(?:(?P<domain>{PART}(?::\d+)?)/)?(?P<path>{PART}(?:/{PART})*)(?::(?P<tag>\w[\w.-]{{0,127}}))?", re.ASCII)


class Refused(Exception):
    """What was asked for makes no image; the text says why."""


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", required=True, type=Path, metavar="TAR")
    parser.add_argument("--name", required=True, metavar="NAME:TAG", help="the image's name")
    parser.add_argument("--entrypoint", required=True, metavar="PATH", help="the program's path in the image")
    parser.add_argument("--file", action="append", default=[], type=pair, metavar="PATH=SOURCE",
                        help="a file of the image and where it comes from; repeat, the program is one of them")
    parser.add_argument("--label", action="append", default=[], type=pair, metavar="NAME=VALUE", help="repeat")
    given = parser.parse_args(arguments)
    try:
        files = {path: Path(source).read_bytes() for path, source in given.file}
        archive = image(given.name, given.entrypoint, files, dict(given.label), epoch(os.environ))
    except (OSError, Refused) as error:
        print(f"mkimage: {error}", file=sys.stderr)
        return 64
    given.output.parent.mkdir(parents=True, exist_ok=True)
    # Whoever reads the archive meanwhile sees the old one or the new one.
    fresh = given.output.with_name(given.output.name + ".new")
    fresh.write_bytes(archive)
    fresh.replace(given.output)
    print(f"{given.output}: {full_name(given.name)}, {len(archive) / 1e6:.1f} MB")
    return 0


def pair(text):
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form A=B")
    return name, value


def epoch(environment):
    text = environment.get("SOURCE_DATE_EPOCH") or "0"
    if not text.isdigit():
        raise Refused(f"SOURCE_DATE_EPOCH is '{text}', not a number of seconds")
    return int(text)


def image(name, entrypoint, files, labels, time):
    """The archive's bytes. `files` maps paths of the image to contents; the one at `entrypoint` is the program."""
    if entrypoint not in files:
        raise Refused(f"no --file makes the entrypoint {entrypoint}")
    architecture = architecture_of(files[entrypoint], entrypoint)
    layer = tar(with_folders(files, entrypoint), time)
    created = datetime.datetime.fromtimestamp(time, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    config = compact({
        "created": created,
        "architecture": architecture,
        "os": "linux",
        "config": {"User": USER, "Env": ["PATH=/"], "Entrypoint": [entrypoint], "WorkingDir": "/", "Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
        "history": [{"created": created, "created_by": "mkimage"}],
    })
    manifest = compact({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)],
    })
    full = full_name(name)
    index = descriptor("application/vnd.oci.image.manifest.v1+json", manifest) | {
        "platform": {"architecture": architecture, "os": "linux"},
        # containerd takes the image's name from the first, others its tag from the second.
        "annotations": {"io.containerd.image.name": full, "org.opencontainers.image.ref.name": full.rpartition(":")[2]},
    }
    blobs = {blob(data): data for data in (layer, config, manifest)}
    return tar([(path, data, 0o644) for path, data in sorted(blobs.items())] + [
        ("index.json", compact({"schemaVersion": 2, "manifests": [index]}), 0o644),
        # What Docker and Podman read; it names the same blobs.
        ("manifest.json", compact([{"Config": blob(config), "RepoTags": [full], "Layers": [blob(layer)]}]), 0o644),
        ("oci-layout", compact({"imageLayoutVersion": "1.0.0"}), 0o644),
    ], time)


def full_name(name):
    """The name as a kubelet looks for it: one without a domain means Docker's registry to every runtime."""
    parts = NAME.fullmatch(name)
    if not parts:
        raise Refused(f"'{name}' is not an image's name: [DOMAIN/]PATH[:TAG], in lower case and without a digest")
    domain, path, tag = parts["domain"], parts["path"], parts["tag"] or "latest"
    if domain and not (set(".:") & set(domain) or domain == "localhost"):
        domain, path = None, f"{domain}/{path}"
    if not domain:
        domain, path = "docker.io", path if "/" in path else f"library/{path}"
    return f"{domain}/{path}:{tag}"


def architecture_of(program, path):
    """What a 64-bit little-endian ELF program runs on. One that needs a loader would not start in an image without it."""
    if program[:6] != b"\x7fELF\x02\x01":
        raise Refused(f"{path} is not a program (64-bit ELF)")
    machine, = struct.unpack_from("<H", program, 18)
    headers_at, = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    kinds = {struct.unpack_from("<I", program, headers_at + at * size)[0] for at in range(count)}
    if PT_INTERP in kinds:
        raise Refused(f"{path} is linked dynamically: an image without a loader cannot start it")
    if machine not in ARCHITECTURES:
        raise Refused(f"{path} is for a machine (ELF {machine}) that is none of {', '.join(ARCHITECTURES.values())}")
    return ARCHITECTURES[machine]


def with_folders(files, program):
    """Tar entries (path, contents or None for a folder, mode) of the files and of every folder above them."""
    entries = {}
    for path, data in files.items():
        place = PurePosixPath(path)
        if not place.is_absolute() or ".." in place.parts:
            raise Refused(f"'{path}' is not an absolute path of the image")
        for folder in list(place.parents)[:-1]:
            entries[str(folder)[1:]] = (None, 0o755)
        entries[str(place)[1:]] = (data, 0o755 if path == program else 0o644)
    return [(path, data, mode) for path, (data, mode) in sorted(entries.items())]


def tar(entries, time):
    out = io.BytesIO()
    # USTAR has no headers that depend on the version of Python.
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, data, mode in entries:
            entry = tarfile.TarInfo(path)
            entry.mode, entry.mtime, entry.uid, entry.gid = mode, time, 0, 0
            if data is None:
                entry.type = tarfile.DIRTYPE
                archive.addfile(entry)
            else:
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def compact(value):
    return json.dumps(value, separators=(",", ":"), sort_keys=True).encode()


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def blob(data):
    return "blobs/" + digest(data).replace(":", "/")


def descriptor(media_type, data):
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}


if __name__ == "__main__":
    sys.exit(main())

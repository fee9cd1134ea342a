"""What every runtime relies on: the same bytes for the same input, digests that are true, a user that is not root, and both
layouts in one archive."""

import contextlib
import hashlib
import io
import json
import os
import struct
import tarfile
import tempfile
import unittest
from pathlib import Path

import mkimage

NAME = "example.invalid/team/web:dev"


def program(machine=62, kind=1):
    """An ELF program with one program header, which says nothing but its kind."""
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return head + struct.pack("<I", kind) + bytes(52)


def build(name=NAME, files=None, labels=None, time=1_700_000_000):
    files = files or {"/web": program(), "/etc/nsswitch.conf": b"hosts: files dns\n"}
    return mkimage.image(name, "/web", files, labels or {}, time)


def unpack(archive):
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {entry.name: (entry, tar.extractfile(entry).read() if entry.isfile() else None) for entry in tar}


class Image(unittest.TestCase):
    def test_the_same_input_makes_the_same_bytes(self):
        files = {"/web": program(), "/etc/nsswitch.conf": b"hosts: files dns\n"}
        first = build(files=files)
        self.assertEqual(first, build(files=dict(reversed(files.items()))))
        self.assertNotEqual(first, build(time=1_700_000_001))
        self.assertEqual({entry.mtime for entry, _ in unpack(first).values()}, {1_700_000_000})

    def test_each_blob_is_called_by_its_digest_and_named_where_it_belongs(self):
        parts = unpack(build())
        for name, (_, data) in parts.items():
            if name.startswith("blobs/"):
                self.assertEqual(name, "blobs/sha256/" + hashlib.sha256(data).hexdigest())

        def follow(descriptor):
            data = parts["blobs/" + descriptor["digest"].replace(":", "/")][1]
            self.assertEqual(descriptor["size"], len(data))
            return data

        self.assertEqual(json.loads(parts["oci-layout"][1]), {"imageLayoutVersion": "1.0.0"})
        index, = json.loads(parts["index.json"][1])["manifests"]
        self.assertEqual(index["annotations"]["io.containerd.image.name"], NAME)
        self.assertEqual(index["annotations"]["org.opencontainers.image.ref.name"], "dev")
        manifest = json.loads(follow(index))
        config, layer = json.loads(follow(manifest["config"])), follow(manifest["layers"][0])
        # The layer is not compressed, so its digest is its content's.
        self.assertEqual(config["rootfs"]["diff_ids"], ["sha256:" + hashlib.sha256(layer).hexdigest()])
        # And Docker's view is the same image.
        docker, = json.loads(parts["manifest.json"][1])
        self.assertEqual(docker["RepoTags"], [NAME])
        self.assertEqual([parts[docker["Config"]][1], parts[docker["Layers"][0]][1]], [follow(manifest["config"]), layer])

    def test_the_program_runs_as_nobody(self):
        config, layer = self.config_and_layer(build(labels={"org.opencontainers.image.title": "web"}))
        self.assertEqual((config["os"], config["architecture"], config["created"]), ("linux", "amd64", "2023-11-14T22:13:20Z"))
        self.assertEqual(config["config"]["User"], "41404:41404")
        self.assertEqual(config["config"]["Entrypoint"], ["/web"])
        self.assertEqual(config["config"]["Labels"], {"org.opencontainers.image.title": "web"})
        files = {name: (entry.mode, entry.uid, entry.isdir()) for name, (entry, _) in unpack(layer).items()}
        self.assertEqual(files, {
            "etc": (0o755, 0, True), "etc/nsswitch.conf": (0o644, 0, False), "web": (0o755, 0, False),
        })
        config, _ = self.config_and_layer(build(files={"/web": program(183)}))
        self.assertEqual(config["architecture"], "arm64")

    def config_and_layer(self, archive):
        parts = unpack(archive)
        docker, = json.loads(parts["manifest.json"][1])
        return json.loads(parts[docker["Config"]][1]), parts[docker["Layers"][0]][1]

    def test_what_would_not_start_is_refused(self):
        for files, why in [
            ({"/web": program(kind=3)}, "dynamically"),
            ({"/web": program(machine=8)}, "ELF 8"),
            ({"/web": b"#!/bin/sh\n"}, "not a program"),
            ({"/other": program()}, "entrypoint"),
            ({"/web": program(), "etc/x": b""}, "absolute"),
            ({"/web": program(), "/../x": b""}, "absolute"),
        ]:
            with self.subTest(why=why), self.assertRaisesRegex(mkimage.Refused, why):
                build(files=files)

    def test_names_are_those_a_kubelet_looks_for(self):
        for name, full in [
            (NAME, NAME),
            ("example.invalid/web", "example.invalid/web:latest"),
            ("localhost/web:1", "localhost/web:1"),
            ("localhost:5000/web", "localhost:5000/web:latest"),
            ("web:0.1.0", "docker.io/library/web:0.1.0"),
            ("team/web:1", "docker.io/team/web:1"),
            ("a/b/web", "docker.io/a/b/web:latest"),
        ]:
            self.assertEqual(mkimage.full_name(name), full, name)
        for name in ["", "Web:1", "web:", "web:1:2", "web@sha256:00", "example.invalid/", "web 1"]:
            with self.subTest(name=name), self.assertRaises(mkimage.Refused):
                mkimage.full_name(name)


class CommandLine(unittest.TestCase):
    def run_main(self, folder, *more, environment=None):
        source = Path(folder, "program")
        source.write_bytes(program())
        output = Path(folder, "out", "web.tar")
        arguments = ["--output", str(output), "--name", NAME, "--entrypoint", "/web", "--file", f"/web={source}", *more]
        before = dict(os.environ)
        os.environ.update(environment or {})
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                return mkimage.main(arguments), output, said.getvalue()
        finally:
            os.environ.clear()
            os.environ.update(before)

    def test_it_writes_the_archive(self):
        with tempfile.TemporaryDirectory() as folder:
            code, output, said = self.run_main(folder, "--label", "a=b=c", environment={"SOURCE_DATE_EPOCH": "5"})
            self.assertEqual((code, output.read_bytes()), (0, build(files={"/web": program()}, labels={"a": "b=c"}, time=5)))
            self.assertIn(NAME, said)
            self.assertEqual(list(output.parent.iterdir()), [output])

    def test_it_says_what_is_wrong(self):
        with tempfile.TemporaryDirectory() as folder:
            for more, environment, why in [
                (["--file", "/x=/no/such/file"], {}, "/no/such/file"),
                ([], {"SOURCE_DATE_EPOCH": "today"}, "SOURCE_DATE_EPOCH"),
            ]:
                code, output, said = self.run_main(folder, *more, environment=environment)
                self.assertEqual((code, output.exists()), (64, False))
                self.assertIn(why, said)


if __name__ == "__main__":
    unittest.main()

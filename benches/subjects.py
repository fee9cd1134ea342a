"""The subjects: how each is started in the same role, client -> proxy A -> proxy B -> origin.

A subject lists the cases it takes part in; `start` returns the address the load goes to and the processes of its two
hops. Settings live in peers/ and posthouse/, each with its reason.
"""

import http.client
import os
import shutil
import socket
import time
from dataclasses import dataclass
from pathlib import Path

from machine import LOAD_CPU, PROXY_CPU, Process, StartError

HERE = Path(__file__).resolve().parent
NODE_A, NODE_B, POD = "127.0.101.1", "127.0.102.1", "127.0.102.10"
ORIGIN_H1, ORIGIN_H2 = f"{POD}:8080", f"{POD}:8081"
START_SECONDS = 15


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    path: str
    size: int
    h2: bool
    host: str


CASES = {
    case.name: case
    for case in (
        Case("h1-1k", "HTTP/1.1 keep-alive, 1 KiB, 64 connections", "/1k", 1024, False, "origin.bench"),
        Case("h1-64k", "HTTP/1.1 keep-alive, 64 KiB, 64 connections", "/64k", 65536, False, "origin.bench"),
        Case("h2-1k", "HTTP/2, 1 KiB, 8 connections x 16 streams", "/1k", 1024, True, "origin-h2c.bench"),
    )
}


@dataclass
class Running:
    """A started subject. `target` takes the load; `hops` are the processes whose CPU and memory count."""

    target: str
    hops: list
    host: str

    def stop(self):
        for hop in self.hops:
            hop.stop()


class Subject:
    """One row of the table: the program and the function that starts its two hops for a case.

    `cases` are those it takes part in by default; asked for by name, it takes part in all.
    """

    def __init__(self, name, title, program, launch, cases=tuple(CASES), version=()):
        self.name, self.title, self.program, self.launch = name, title, program, launch
        self.cases, self.version = cases, version

    def start(self, case, work):
        """Starts both hops and waits for a right answer through them; StartError says why there is none."""
        if not shutil.which(self.program):
            raise StartError(f"no program {self.program} (see target/bench/*.log for a failed installation)")
        running = self.launch(self, case, Path(work))
        try:
            _await_answer(self.name, running, case)
        except BaseException:
            running.stop()
            raise
        return running


def _fill(template, out, **values):
    text = (HERE / "peers" / template).read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    out.write_text(text)
    return out


def _user():
    # Root's worker would become www-data, who cannot read our private directory.
    return "user root;" if os.geteuid() == 0 else ""


def start_origin(work):
    """The static nginx; returns its process."""
    www = Path(work) / "www"
    www.mkdir()
    (www / "1k").write_bytes(b"x" * 1024)
    (www / "64k").write_bytes(b"x" * 65536)
    conf = _fill("origin.conf", Path(work) / "origin.conf",
                 DIR=work, USER=_user(), ORIGIN_H1=ORIGIN_H1, ORIGIN_H2=ORIGIN_H2)
    origin = Process("origin (nginx)", ["nginx", "-c", str(conf), "-e", "stderr"], LOAD_CPU, f"{work}/origin.log")
    try:
        _await_answer("origin", Running(ORIGIN_H1, [origin], "origin.bench"), CASES["h1-1k"])
    except BaseException:
        origin.stop()
        raise
    return origin


def _two(subject, command_of, work, env=None):
    """Starts hop B, then hop A. `command_of(role)` writes that hop's configuration and returns its command."""
    hops = []
    try:
        for role in ("b", "a"):
            log = work / f"{subject.name}-{role}.log"
            hops.append(Process(f"{subject.name} hop {role}", command_of(role), PROXY_CPU, log, env))
    except BaseException:
        for hop in hops:
            hop.stop()
        raise
    return hops


def _direct(_subject, case, _work):
    return Running(ORIGIN_H2 if case.h2 else ORIGIN_H1, [], case.host)


def _nginx(subject, case, work):
    listen = {"a": f"{NODE_A}:4150", "b": f"{NODE_B}:4150"}
    listen_h2 = {"a": f"{NODE_A}:4151", "b": f"{NODE_B}:4151"}

    def command(role):
        name = f"{subject.name}-{role}"
        conf = _fill("nginx.conf", work / f"{name}.conf", DIR=work, USER=_user(), ROLE=name, LISTEN=listen[role],
                     LISTEN_H2=listen_h2[role], NEXT=listen["b"] if role == "a" else ORIGIN_H1)
        return ["nginx", "-c", str(conf), "-e", "stderr"]

    return Running((listen_h2 if case.h2 else listen)["a"], _two(subject, command, work), case.host)


def _haproxy(subject, case, work):
    link_h2 = subject.name.endswith("-h2")
    listen = {"a": f"{NODE_A}:4160", "b": f"{NODE_B}:4160"}

    def command(role):
        # HTTP/2 towards the origin only where the client speaks it too: nobody would translate 1.1 up to 2 there.
        h2 = link_h2 and (role == "a" or case.h2)
        origin = ORIGIN_H2 if h2 else ORIGIN_H1
        conf = _fill("haproxy.cfg", work / f"{subject.name}-{role}.cfg", LISTEN=listen[role],
                     BUFSIZE=69632 if case.size > 16384 else 16384, NEXT=listen["b"] if role == "a" else origin,
                     PROTO="proto h2" if h2 else "")
        return ["haproxy", "-db", "-q", "-f", str(conf)]

    return Running(listen["a"], _two(subject, command, work), case.host)


def _envoy(subject, case, work):
    link_h2 = subject.name.endswith("-h2")
    listen = {"a": f"{NODE_A}:4170", "b": f"{NODE_B}:4170"}

    def command(role):
        h2 = link_h2 and (role == "a" or case.h2)
        origin = ORIGIN_H2 if h2 else ORIGIN_H1
        listen_ip, listen_port = listen[role].split(":")
        next_ip, next_port = (listen["b"] if role == "a" else origin).split(":")
        proto = ("http2_protocol_options: { max_concurrent_streams: 1024, initial_stream_window_size: 1048576, "
                 "initial_connection_window_size: 16777216 }") if h2 else "http_protocol_options: {}"
        conf = _fill("envoy.yaml", work / f"{subject.name}-{role}.yaml", LISTEN_IP=listen_ip, LISTEN_PORT=listen_port,
                     NEXT_IP=next_ip, NEXT_PORT=next_port, PROTO=proto)
        # No shared memory for hot restarts: two instances would fight over it.
        return [subject.program, "-c", str(conf), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]

    return Running(listen["a"], _two(subject, command, work), case.host)


def _posthouse(subject, case, work):
    node_ip = {"a": NODE_A, "b": NODE_B}

    def command(role):
        ip = node_ip[role]
        return [subject.program, "run", "--source", f"dir:{HERE / 'posthouse'}", "--node-name", f"node-{role}",
                "--node-ip", ip, "--outbound-listen", f"{ip}:4140", "--link-listen", f"{ip}:4141",
                "--admin-listen", f"{ip}:9990", "--metrics-listen", f"{ip}:9991", "--namespace", "posthouse",
                # Never past hop B: a peer that is not ready yet shall be an error, not a shorter way.
                "--missing-peer", "fail", "--tls", "off", "--workers", "1"]

    # The row "-h1": an HTTP/2 client whose Service says HTTP/1.1, the translation that the peers' h1 rows make.
    host = "origin.bench" if subject.name.endswith("-h1") else case.host
    return Running(f"{NODE_A}:4140", _two(subject, command, work), host)


def catalogue(posthouse, envoy):
    """Every subject by name, in the order of the table. The arguments are the paths of the two programs."""
    h2_only = ("h2-1k",)
    # At 64 KiB an HTTP/2 link is not HAProxy's best (0.75x to 0.93x of its HTTP/1.1 link): nothing is spliced.
    small = ("h1-1k", "h2-1k")
    found = (
        Subject("direct", "no proxy (ceiling)", "nginx", _direct),
        Subject("posthouse", "Posthouse", posthouse, _posthouse, version=(posthouse, "--version")),
        Subject("posthouse-h1", "Posthouse, HTTP/1.1 to the pod", posthouse, _posthouse, h2_only),
        Subject("haproxy", "HAProxy", "haproxy", _haproxy, version=("haproxy", "-v")),
        Subject("haproxy-h2", "HAProxy, HTTP/2 link", "haproxy", _haproxy, small),
        Subject("nginx", "nginx", "nginx", _nginx, version=("nginx", "-v")),
        Subject("envoy", "Envoy", envoy, _envoy, version=(envoy, "--version")),
        Subject("envoy-h2", "Envoy, HTTP/2 link", envoy, _envoy),
    )
    return {subject.name: subject for subject in found}


LISTENERS = [ORIGIN_H1, ORIGIN_H2] + [f"{node}:{port}" for node in (NODE_A, NODE_B)
                                      for port in (4140, 4141, 4150, 4151, 4160, 4170, 9990, 9991)]


def occupied():
    """Addresses of ours on which somebody answers already; a reused port would measure the wrong process."""
    found = []
    for address in LISTENERS:
        ip, port = address.split(":")
        with socket.socket() as probe:
            probe.settimeout(1)
            if probe.connect_ex((ip, int(port))) == 0:
                found.append(address)
    return found


def _await_answer(name, running, case):
    """Until one whole, right answer comes through; the processes' end or START_SECONDS ends the wait."""
    # The probe speaks HTTP/1.1, which nginx' and the origin's HTTP/2 ports do not: there the warm-up is the probe.
    ip, port = running.target.split(":")
    listening_only = running.target == ORIGIN_H2 or port == "4151"
    until, last = time.monotonic() + START_SECONDS, "nothing listens"
    while time.monotonic() < until:
        for hop in running.hops:
            hop.check()
        try:
            if listening_only:
                socket.create_connection((ip, int(port)), timeout=2).close()
                return
            probe = http.client.HTTPConnection(ip, int(port), timeout=2)
            probe.request("GET", case.path, headers={"Host": running.host})
            answer = probe.getresponse()
            body = answer.read()
            probe.close()
            if answer.status == 200 and len(body) == case.size:
                return
            last = f"status {answer.status}, {len(body)} bytes: {body[:200]!r}"
        except (OSError, http.client.HTTPException) as error:
            last = str(error) or type(error).__name__
        time.sleep(0.02)
    tails = "; ".join(f"{hop.name}: {hop.tail()}" for hop in running.hops)
    raise StartError(f"{name} gave no right answer within {START_SECONDS} s ({last}); {tails}")

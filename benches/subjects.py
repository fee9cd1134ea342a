"""The subjects: how each is started in the same role, client -> proxy A -> proxy B -> origin.

A subject lists the cases it takes part in; `start` returns the address the load goes to and the processes of its two
hops. Settings live in peers/ and posthouse/, each with its reason.
"""

import http.client
import itertools
import os
import shutil
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path

import mtls
from machine import LOAD_CPU, PROXY_CPU, Process, StartError

HERE = Path(__file__).resolve().parent
NODE_A, NODE_B, POD = "127.0.101.1", "127.0.102.1", "127.0.102.10"
ORIGIN_H1, ORIGIN_H2 = f"{POD}:8080", f"{POD}:8081"
ENVOY_ADMIN = f"{NODE_B}:4171"
START_SECONDS = 15
# The suite with the least cost, and what Envoy chooses (BoringSSL lets nobody choose). Ours is rustls' first, AES-256-GCM.
CIPHERS = "TLS_AES_128_GCM_SHA256"


@dataclass(frozen=True)
class Case:
    name: str
    title: str
    path: str
    size: int
    h2: bool
    host: str
    mtls: bool = False
    # Hop B has another CA's certificate; see Subject.check_sender.
    impostor: bool = False

    def with_mtls(self):
        """The same load with mutual TLS 1.3 between the two hops; from the client and to the pod it stays in the clear."""
        return replace(self, name=f"{self.name}-mtls", title=f"{self.title}, mutual TLS", mtls=True)


PLAIN = (
    Case("h1-1k", "HTTP/1.1 keep-alive, 1 KiB, 64 connections", "/1k", 1024, False, "origin.bench"),
    Case("h1-64k", "HTTP/1.1 keep-alive, 64 KiB, 64 connections", "/64k", 65536, False, "origin.bench"),
    Case("h2-1k", "HTTP/2, 1 KiB, 8 connections x 16 streams", "/1k", 1024, True, "origin-h2c.bench"),
)
CASES = {case.name: case for case in (*PLAIN, *(case.with_mtls() for case in PLAIN))}
# What may be asked for in place of a list of cases.
GROUPS = {"plain": [name for name, case in CASES.items() if not case.mtls],
          "mtls": [name for name, case in CASES.items() if case.mtls]}


@dataclass
class Running:
    """A started subject. `target` takes the load; `hops` are the processes whose CPU and memory count.

    With mutual TLS, `link` is hop B's address, `link_h2` what is spoken there, and `counted` asks hop B how many TLS handshakes
    it has made, of which `by_proof` are the proof's own.
    """

    target: str
    hops: list
    host: str
    link: str = ""
    link_h2: bool = False
    counted: object = None
    by_proof: int = 0

    def prove(self, name, case, work):
        """StartError unless the link has mutual TLS."""
        link = mtls.Link(name, self.link, NODE_A, _identities(work)["node-a"], self.host, case.path, self.link_h2)
        before = self.counted()
        mtls.prove(link)
        self.by_proof = self.counted() - before

    def handshakes(self):
        """TLS handshakes that hop B made with hop A; None without TLS, StartError if there was none."""
        if not self.counted:
            return None
        made = self.counted() - self.by_proof
        if made < 1:
            raise StartError("hop B counts no TLS handshake with hop A: the load went another way")
        return made

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
            if running.counted:
                running.prove(f"{self.name} hop b", case, work)
        except BaseException:
            running.stop()
            raise
        return running

    def check_sender(self, work):
        """StartError if hop A sends a request to a hop B whose certificate is another CA's."""
        if not shutil.which(self.program):
            return  # `start` says so.
        case = replace(CASES["h1-1k-mtls"], impostor=True)
        running = self.launch(self, case, Path(work))
        try:
            if not running.counted:
                return
            fake = _identities(work)["impostor"]
            link = mtls.Link(self.name, running.link, NODE_A, _identities(work)["node-a"], running.host, case.path, running.link_h2)
            _until(f"{self.name}: an impostor did not start", running, lambda: mtls.serves(link.secure(ca=fake.ca)[1]))
            # It serves whoever takes its certificate, so any other answer than 200 is hop A's refusal.
            _until(f"{self.name}: hop a did not answer", running, lambda: self._refuses(running, case))
        finally:
            running.stop()

    def _refuses(self, running, case):
        # HAProxy tries a server four times, a second apart.
        if _get(running, case, 10)[0] == 200:
            raise StartError(f"{self.name}: hop a takes a hop b whose certificate is another CA's")
        return True


def _identities(work):
    """The certificates of this run, made when they are first asked for."""
    work = Path(work)
    if work not in _made:
        _made[work] = mtls.make(work)
        _made[work]["impostor"] = mtls.impostor(work, _made[work]["node-b"])
    return _made[work]


_made = {}


def _filled(template, **values):
    text = (HERE / "peers" / template).read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text


def _fill(template, out, **values):
    out.write_text(_filled(template, **values))
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


def _tls(role, work, case):
    """What a configuration is told of the link's security; nothing where it has none."""
    if not case.mtls:
        return None
    mine, peer = (mtls.NODES if role == "a" else mtls.NODES[::-1])
    one = _identities(work)["impostor" if case.impostor and role == "b" else mine]
    return {"CERT": one.cert, "KEY": one.key, "BOTH": one.both, "CA": one.ca, "PEER": mtls.uri(peer), "CIPHERS": CIPHERS}


def _nginx(subject, case, work):
    listen = {"a": f"{NODE_A}:4150", "b": f"{NODE_B}:4150"}
    listen_h2 = {"a": f"{NODE_A}:4151", "b": f"{NODE_B}:4151"}
    counters = work / f"{subject.name}.sock"

    def command(role):
        name = f"{subject.name}-{role}"
        tls = _tls(role, work, case)
        text, stats = "", ""
        if tls:
            text = _filled(f"nginx-tls-{'out' if role == 'a' else 'in'}.conf", **tls)
        if tls and role == "b":
            counters.unlink(missing_ok=True)
            # It has no counter of handshakes: connections that it took, the question itself among them.
            stats = f"server {{ listen unix:{counters}; location / {{ stub_status; }} }}"
        conf = _fill("nginx.conf", work / f"{name}.conf", DIR=work, USER=_user(), ROLE=name, LISTEN=listen[role],
                     LISTEN_H2=listen_h2[role], NEXT=listen["b"] if role == "a" else ORIGIN_H1, TLS=text, STATS=stats,
                     SSL="ssl" if tls and role == "b" else "", SCHEME="https" if tls and role == "a" else "http")
        return ["nginx", "-c", str(conf), "-e", "stderr"]

    asked = itertools.count(1)

    def counted():
        page = mtls.ask(counters, b"GET / HTTP/1.0\r\n\r\n")
        return mtls.total(page, r"^ (\d+) \d+ \d+ $") - next(asked)

    hops = _two(subject, command, work)
    return Running((listen_h2 if case.h2 else listen)["a"], hops, case.host, listen["b"], False,
                   counted if case.mtls else None)


def _haproxy(subject, case, work):
    link_h2 = subject.name.endswith("-h2")
    listen = {"a": f"{NODE_A}:4160", "b": f"{NODE_B}:4160"}
    counters = work / f"{subject.name}.sock"

    def command(role):
        # HTTP/2 towards the origin only where the client speaks it too: nobody would translate 1.1 up to 2 there.
        h2 = link_h2 and (role == "a" or case.h2)
        origin = ORIGIN_H2 if h2 else ORIGIN_H1
        bind = server = stats = ""
        if tls := _tls(role, work, case):
            both = f"ssl crt {tls['BOTH']} ca-file {tls['CA']} verify required alpn {'h2' if link_h2 else 'http/1.1'}"
            if role == "a":
                # The name is asked for and verified; sessions are resumed by default.
                server = f"{both} sni str(node-b) verifyhost node-b"
            else:
                bind, stats = both, f"stats socket {counters} mode 600"
        conf = _fill("haproxy.cfg", work / f"{subject.name}-{role}.cfg", LISTEN=listen[role],
                     BUFSIZE=69632 if case.size > 16384 else 16384, NEXT=listen["b"] if role == "a" else origin,
                     PROTO="proto h2" if h2 else "", BIND_TLS=bind, SERVER_TLS=server, STATS=stats, CIPHERS=CIPHERS)
        return ["haproxy", "-db", "-q", "-f", str(conf)]

    def counted():
        return mtls.total(mtls.ask(counters, b"show info\n"), r"^CumSslConns: (\d+)$")

    return Running(listen["a"], _two(subject, command, work), case.host, listen["b"], link_h2,
                   counted if case.mtls else None)


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
        link_in = link_out = admin = ""
        if tls := _tls(role, work, case):
            tls["ALPN"] = "h2" if link_h2 else "http/1.1"
            if role == "a":
                link_out = _filled("envoy-tls-out.yaml", **tls)
            else:
                link_in = _filled("envoy-tls-in.yaml", **tls)
                admin_ip, admin_port = ENVOY_ADMIN.split(":")
                admin = f"admin: {{ address: {{ socket_address: {{ address: {admin_ip}, port_value: {admin_port} }} }} }}"
        conf = _fill("envoy.yaml", work / f"{subject.name}-{role}.yaml", LISTEN_IP=listen_ip, LISTEN_PORT=listen_port,
                     NEXT_IP=next_ip, NEXT_PORT=next_port, PROTO=proto, TLS_IN=link_in, TLS_OUT=link_out, ADMIN=admin)
        # No shared memory for hot restarts: two instances would fight over it.
        return [subject.program, "-c", str(conf), "--concurrency", "1", "--disable-hot-restart", "-l", "error"]

    def counted():
        return mtls.total(mtls.scrape(ENVOY_ADMIN, "/stats?filter=listener.*ssl.handshake"), r"ssl\.handshake: (\d+)$")

    return Running(listen["a"], _two(subject, command, work), case.host, listen["b"], link_h2,
                   counted if case.mtls else None)


def _posthouse(subject, case, work):
    node_ip = {"a": NODE_A, "b": NODE_B}

    def command(role):
        ip = node_ip[role]
        security = ["--tls", "off"]
        if tls := _tls(role, work, case):
            security = ["--tls", "node", "--tls-cert", str(tls["CERT"]), "--tls-key", str(tls["KEY"]), "--tls-ca", str(tls["CA"])]
        return [subject.program, "run", "--source", f"dir:{HERE / 'posthouse'}", "--node-name", f"node-{role}",
                "--node-ip", ip, "--outbound-listen", f"{ip}:4140", "--link-listen", f"{ip}:4141",
                "--admin-listen", f"{ip}:9990", "--metrics-listen", f"{ip}:9991", "--namespace", "posthouse",
                # Never past hop B: a peer that is not ready yet shall be an error, not a shorter way.
                "--missing-peer", "fail", *security, "--workers", "1"]

    def counted():
        page = mtls.scrape(f"{NODE_B}:9991", "/metrics")
        return mtls.total(page, r'^posthouse_link_handshakes_total\{(?=[^}]*direction="in")(?=[^}]*result="ok")[^}]*\} (\d+)$')

    # The row "-h1": an HTTP/2 client whose Service says HTTP/1.1, the translation that the peers' h1 rows make.
    host = "origin.bench" if subject.name.endswith("-h1") else case.host
    return Running(f"{NODE_A}:4140", _two(subject, command, work), host, f"{NODE_B}:4141", True,
                   counted if case.mtls else None)


def catalogue(posthouse, envoy):
    """Every subject by name, in the order of the table. The arguments are the paths of the two programs."""
    h2_only = tuple(name for name, case in CASES.items() if case.h2)
    # At 64 KiB an HTTP/2 link in the clear is not HAProxy's best (0.75x to 0.93x of its HTTP/1.1 link): nothing is spliced.
    # With TLS nothing is spliced in either, so both take part.
    small = tuple(name for name in CASES if name != "h1-64k")
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
                                      for port in (4140, 4141, 4150, 4151, 4160, 4170, 4171, 9990, 9991)]


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


def _get(running, case, seconds=2):
    """One request through both hops: (status, body)."""
    ip, port = running.target.split(":")
    probe = http.client.HTTPConnection(ip, int(port), timeout=seconds)
    try:
        probe.request("GET", case.path, headers={"Host": running.host})
        answer = probe.getresponse()
        return answer.status, answer.read()
    finally:
        probe.close()


def _await_answer(name, running, case):
    """Until one whole, right answer comes through."""
    # The probe speaks HTTP/1.1, which nginx' and the origin's HTTP/2 ports do not: there the warm-up is the probe.
    ip, port = running.target.split(":")

    def right():
        if running.target == ORIGIN_H2 or port == "4151":
            socket.create_connection((ip, int(port)), timeout=2).close()
            return True
        status, body = _get(running, case)
        if status == 200 and len(body) == case.size:
            return True
        raise OSError(f"status {status}, {len(body)} bytes: {body[:200]!r}")

    _until(f"{name} gave no right answer", running, right)


def _until(what, running, done):
    """Until `done` is true; OSErrors are retried. The processes' end or START_SECONDS ends the wait."""
    until, last = time.monotonic() + START_SECONDS, "nothing listens"
    while time.monotonic() < until:
        for hop in running.hops:
            hop.check()
        try:
            if done():
                return
        except (OSError, http.client.HTTPException) as error:
            last = str(error) or type(error).__name__
        time.sleep(0.02)
    tails = "; ".join(f"{hop.name}: {hop.tail()}" for hop in running.hops)
    raise StartError(f"{what} within {START_SECONDS} s ({last}); {tails}")

"""Trust between nodes on the real cluster: who may link, whose certificates are signed, whose claims are believed, what crosses
the wire. The tests hold the authority's key (a cluster's admin can read its Secret), so that they can make what a thief would."""

import collections
import json
import os
import re
import secrets
import signal
import subprocess
import time

import pytest

import kube
import nodes
import trust

pytestmark = pytest.mark.own


@pytest.fixture(scope="module")
def ids(mesh):
    """Node -> its name in certificates, as its proxy shows it."""
    with mesh.admins() as admins:
        found = {node: admin.get("/identity") for node, admin in admins.items()}
    for node, identity in found.items():
        assert identity["tls"] == "node", f"{node}: {identity}"
        assert not identity["permissive"] and identity["last_error"] is None, f"{node}: {identity}"
    return {node: identity["spiffe_id"] for node, identity in found.items()}


@pytest.fixture
def links(tmp_path):
    return trust.Links(tmp_path)


@pytest.fixture(scope="module")
def authority(mesh):
    return trust.Authority.of_the_mesh()


def refused_at(number, reason, dialled):
    """What came of a link that must not come to be; the metric of the node must say why."""
    def counts():
        return trust.handshakes(number, result=reason), trust.counted(number, "posthouse_clients_refused_total", reason="not_a_peer")

    before = counts()
    came = dialled()
    assert came["outcome"] == "refused", f"{reason}: {came}"
    kube.until(
        f"node-{number} counts a handshake that failed by {reason}: {came}",
        lambda: all(now > then for now, then in zip(counts(), before)),
        seconds=10,
    )
    return came


def test_every_node_has_its_own_certificate_and_trusts_the_same_roots(mesh, report):
    with mesh.admins() as admins:
        found = {node: admin.get("/identity") for node, admin in admins.items()}
        expiries = {node: admin.metric("posthouse_certificate_expiry_timestamp_seconds") for node, admin in admins.items()}
    for node, identity in found.items():
        assert identity["spiffe_id"].endswith(f"/node/{node}"), identity
        assert expiries[node] > time.time() + 60, f"{node}'s certificate ends at {expiries[node]}"
    assert len({identity["certificate"]["serial"] for identity in found.values()}) == len(found), found
    roots = {json.dumps(sorted(root["fingerprint_sha256"] for root in identity["roots"])) for identity in found.values()}
    assert len(roots) == 1, roots
    # And no key of a node is anywhere in the API.
    names = kube.kubectl("get", "secrets", "-n", mesh.NAMESPACE, "-o", "jsonpath={.items[?(@.type!='helm.sh/release.v1')].metadata.name}")
    assert names.split() == ["posthouse-ca"], names
    report("; ".join(f"{node}: {identity['spiffe_id']}" for node, identity in sorted(found.items())))


def test_a_link_with_a_good_certificate_is_taken(links, authority, ids):
    """The control of all that are refused below: the same client with nothing wrong."""
    before = trust.handshakes(2, result="ok")
    came = links.dial(1, 2, authority.issue(ids["node-1"]), roots=authority.pem)
    assert came["outcome"] == "taken", came
    assert trust.handshakes(2, result="ok") > before


def test_plain_text_is_refused(links):
    refused_at(2, "plain", lambda: links.dial(1, 2, tls=False))


def test_a_link_without_a_certificate_is_refused(links):
    refused_at(2, "no_certificate", lambda: links.dial(1, 2))


def test_a_certificate_of_another_authority_is_refused(links, ids, report):
    other = trust.Authority.made("posthouse CA")      # the same name, another key
    came = refused_at(2, "unknown_issuer", lambda: links.dial(1, 2, other.issue(ids["node-1"])))
    report(f"the client is told: {came['why']}")


def test_an_expired_certificate_is_refused(links, authority, ids, report):
    expired = authority.issue(ids["node-1"], begin=-120 * trust.MINUTE, end=-trust.MINUTE)
    came = refused_at(2, "expired", lambda: links.dial(1, 2, expired))
    report(f"the client is told: {came['why']}")


def test_a_certificate_that_is_not_valid_yet_is_refused(links, authority, ids):
    early = authority.issue(ids["node-1"], begin=20 * trust.MINUTE, end=60 * trust.MINUTE)
    refused_at(2, "not_yet_valid", lambda: links.dial(1, 2, early))


def test_a_nodes_certificate_from_another_nodes_address_is_refused(links, authority, ids):
    stolen = authority.issue(ids["node-1"])
    refused_at(3, "address", lambda: links.dial(2, 3, stolen))


@pytest.mark.parametrize("what", ["nobody", "pod", "domain", "dns"])
def test_a_certificate_of_the_right_authority_for_somebody_else_is_refused(links, authority, ids, what):
    subject, reason = {
        "nobody": (ids["node-1"].replace("/node/node-1", "/node/node-9"), "unknown_node"),
        "pod": (ids["node-1"].replace("/node/node-1", "/ns/shop/sa/default"), "identity"),
        "domain": ("spiffe://elsewhere.example/node/node-1", "identity"),
        "dns": ("node-1", "identity"),
    }[what]
    refused_at(2, reason, lambda: links.dial(1, 2, authority.issue(subject)))


# Certificate requests.


def test_only_a_nodes_own_name_is_signed_for_a_proxys_token(mesh, ids, tmp_path, report):
    """With a token as the proxy of node-1 has it: its own name is signed, node-2's is denied."""
    config = trust.kubeconfig(tmp_path, mesh.NAMESPACE, "posthouse", mesh.proxies()["node-1"])
    granted = trust.ask_for_certificate(config, ids["node-1"])
    assert trust.decision(granted)[0] == "Approved", granted["status"]
    assert trust.uris(granted) == [ids["node-1"]]
    denied = trust.ask_for_certificate(config, ids["node-2"])
    kind, reason, message = trust.decision(denied)
    assert (kind, reason) == ("Denied", "WrongName"), denied["status"]
    assert ids["node-2"] in message and ids["node-1"] in message, message
    assert "certificate" not in denied["status"]
    report(f"asked for node-2 by node-1: {reason}: {message}")


def test_another_service_accounts_request_is_denied(mesh, ids, tmp_path, report):
    """An account that may make requests, with a pod on the very node whose name it asks for."""
    kube.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "e2e-asks"},
            "rules": [{"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests"], "verbs": ["create"]}],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "e2e-asks"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "e2e-asks"},
            "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "shop"}],
        },
    ]}))
    try:
        config = trust.kubeconfig(tmp_path, "shop", "default", mesh.client("node-1"))
        may = ("auth", "can-i", "create", "certificatesigningrequests.certificates.k8s.io")
        kube.until(
            "the API server knows of the right to ask",
            lambda: kube.run(kube.KUBECTL, f"--kubeconfig={config}", *may, check=False).stdout.strip() == "yes", seconds=20, every=0.5,
        )
        kind, reason, message = trust.decision(trust.ask_for_certificate(config, ids["node-1"]))
        assert (kind, reason) == ("Denied", "NotAProxy"), (kind, reason, message)
        assert "system:serviceaccount:shop:default" in message
        report(f"asked for node-1 by a pod there: {reason}")
    finally:
        kube.kubectl("delete", "clusterrole/e2e-asks", "clusterrolebinding/e2e-asks", "--ignore-not-found")


# Claims of who sends.


def claim(of, **other):
    """What a proxy says of a pod that sends, with parts of it exchanged."""
    parts = {
        "namespace": of["metadata"]["namespace"], "pod": of["metadata"]["name"], "uid": of["metadata"]["uid"],
        "account": of["spec"]["serviceAccountName"], **other,
    }
    return "/".join(parts[part] for part in ("namespace", "pod", "uid", "account"))


def stream(target, source, path="/"):
    """A request as a proxy puts it on a link."""
    return [
        [":method", "GET"], [":scheme", "http"], [":authority", "echo.shop"], [":path", path],
        ["posthouse-target", f"{target['status']['podIP']}:8080"], ["posthouse-source", source],
        ["posthouse-protocol", "http/1.1"], ["posthouse-client", "spiffe://cluster.local/ns/kube-system/sa/admin;pod=x"],
    ]


def echo_on(node):
    """The echo pod of a node."""
    return next(pod for pod in kube.pods("shop", "app=echo").values() if pod["spec"]["nodeName"] == node)


def false_claims_told(mesh, node):
    """Lines of a proxy's log about false claims."""
    log = kube.kubectl("logs", "-n", mesh.NAMESPACE, mesh.proxies()[node])
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in log.splitlines() if "false claim" in line]


def test_a_stolen_node_speaks_for_its_own_pods_only(mesh, links, authority, ids, report):
    """A link client with node-1's certificate, on node-1: what it sends in the name of a pod there is served, and the pod is told
    of that pod; everything else that it may claim is answered 403, told once in the log, and counted."""
    target = echo_on("node-2")
    here, there = (kube.get("pod", mesh.client(node), "-n", "shop") for node in ("node-1", "node-2"))
    identity = authority.issue(ids["node-1"])
    false = {
        "a pod of node-2": claim(there),
        "a pod of its own with another uid": claim(here, uid=there["metadata"]["uid"]),
        "a pod of its own with another account": claim(here, account="admin"),
        "a pod that is not there": claim(here, pod="nobody"),
    }
    told = len(false_claims_told(mesh, "node-2"))
    counted = trust.counted(2, "posthouse_claims_total", result="false")
    streams = [stream(target, claim(here), "/first")]
    streams += [stream(target, source) for source in false.values()]
    streams += [stream(target, claim(here), "/last")]
    came = links.dial(1, 2, identity, roots=authority.pem, streams=streams)
    assert came["outcome"] == "taken" and len(came["answers"]) == len(streams), came
    first, *wrong, last = came["answers"]
    for what, answer in zip(false, wrong):
        assert answer["status"] == 403, f"{what}: {answer}"
        assert answer["headers"].get("posthouse-error") == "http_request_denied", f"{what}: {answer}"
    domain = ids["node-1"].split("/")[2]
    for answer, path in ((first, "/first"), (last, "/last")):
        assert answer["status"] == 200, answer
        body = json.loads(answer["body"])
        assert body["path"] == path
        assert body["headers"]["posthouse-client"] == [
            f"spiffe://{domain}/ns/shop/sa/default;pod={here['metadata']['name']}"
        ], body
        assert body["headers"]["x-forwarded-for"] == [here["status"]["podIP"]], body
        assert not {"posthouse-target", "posthouse-source", "posthouse-protocol"} & body["headers"].keys(), body
    assert trust.counted(2, "posthouse_claims_total", result="false") >= counted + len(false)
    lines = kube.until("node-2's log tells of it", lambda: false_claims_told(mesh, "node-2")[told:], seconds=10, every=0.5)
    assert len(lines) == 1, f"one line in a while, not one a stream: {lines}"
    assert "node-1" in lines[0] and "node-2" in lines[0], lines
    report(f"{len(false)} kinds of false claims: 403 each, one line: {lines[0].strip()[-200:]}")


def test_the_application_sees_who_asks_and_not_what_the_client_says(mesh, ids, report):
    """On the same node and over a link, in HTTP/1.1 and HTTP/2."""
    pod = kube.get("pod", mesh.client("node-1"), "-n", "shop")
    domain = ids["node-1"].split("/")[2]
    wanted = f"spiffe://{domain}/ns/shop/sa/default;pod={pod['metadata']['name']}"
    lies = [
        "-H", "posthouse-client: spiffe://cluster.local/ns/kube-system/sa/admin;pod=root", "-H", "x-forwarded-for: 192.0.2.1",
        "-H", "Posthouse-Source: kube-system/root/0/admin", "-H", "posthouse-target: 127.0.0.1:9990",
    ]
    for node in ("node-1", "node-2"):
        address = echo_on(node)["status"]["podIP"]
        for protocol in ([], ["--http2"]):
            answer = mesh.ask(pod["metadata"]["name"], f"http://{address}:8080/", *lies, *protocol)
            assert answer["status"] == 200, answer
            headers = json.loads(answer["body"])["headers"]
            assert headers.get("posthouse-client") == [wanted], f"{node} {protocol}: {headers}"
            assert headers.get("x-forwarded-for") == [pod["status"]["podIP"]], f"{node} {protocol}: {headers}"
            assert not {"posthouse-source", "posthouse-target"} & headers.keys(), f"{node} {protocol}: {headers}"
    report(f"posthouse-client: {wanted}")


# What crosses the wire.


class Capture:
    """All packets on an interface while it runs, except those of the Kubernetes API (6443) and the kubelets (10250)."""

    def __init__(self, file, interface, filter, prefix=()):
        self.file = file
        self.process = subprocess.Popen(
            [*prefix, "dumpcap", "-q", "-P", "-s", "0", "-i", interface, "-f", filter, "-w", str(file)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )

    def __enter__(self):
        self.said = ""
        # It names the file when it has opened both that and the interface.
        while "File:" not in self.said:
            line = self.process.stderr.readline()
            assert line, f"dumpcap does not capture: {self.said}"
            self.said += line
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        self.process.stderr.close()

    def bytes(self):
        return self.file.read_bytes()


def spellings(marker):
    """A marker as it would stand in plain text, and as HTTP/2 would compress it where it is a whole value or path."""
    from hpack.huffman import HuffmanEncoder
    from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

    encoder = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH)
    # The last byte is filled up by whatever the encoder does there.
    return [marker.encode(), encoder.encode(marker.encode())[:-1], encoder.encode(f"/{marker}".encode())[:-1]]


def test_a_capture_between_nodes_has_nothing_of_a_request(mesh, tmp_path, report):
    """All that leaves and reaches node-2 is captured while node-1 sends it requests with a marker in path, header and body. On
    the pod's own side of node-2, where HTTP/1.1 is plain, the same capture finds the marker."""
    pod, target = mesh.client("node-1"), echo_on("node-2")
    address = target["status"]["podIP"]
    marker = f"marker{secrets.token_hex(20)}"
    outside = f"{nodes.sh('echo ${LINK}2').strip()}"
    # The control's marker must be on the pod's veth; "any" is every interface of the node, and only the pod's side has port 8080.
    inner = ("ip", "netns", "exec", f"{nodes.NAMESPACES}2")
    with (
        Capture(tmp_path / "outside.pcap", outside, "not tcp port 6443 and not tcp port 10250") as wire,
        Capture(tmp_path / "inside.pcap", "any", f"tcp port 8080 and host {address}", inner) as veth,
    ):
        for protocol in ([], ["--http2"]):
            for _ in range(3):
                answer = mesh.ask(
                    pod, f"http://{address}:8080/{marker}", "--method", "POST", "-H", f"x-marker: {marker}",
                    "--body", marker, *protocol,
                )
                assert answer["status"] == 200 and answer["headers"]["x-node"] == "node-2", answer
                assert answer["body"].count(marker) >= 3, "the answer carries it, too"
        trust.settled()
    inside = veth.bytes()
    assert inside.count(marker.encode()) >= 9, f"the control: {len(inside)} bytes on the pod's side have no marker"
    captured = wire.bytes()
    fields = kube.run(
        "tshark", "-r", wire.file, "-d", "tcp.port==4141,tls", "-Y", "tcp.port==4141", "-T", "fields",
        "-e", "ip.src", "-e", "ip.dst", "-e", "tcp.len", "-e", "tls.record.content_type", "-e", "tls.record.opaque_type",
    ).stdout.splitlines()
    ends = {nodes.address(1), nodes.address(2)}
    payload = records = 0
    for line in fields:
        source, destination, length, *kinds = line.split("\t")
        if {source, destination} != ends:
            continue
        payload += int(length or 0)
        # 23: application data; other kinds are of a handshake.
        records += sum(kind.split(",").count("23") for kind in kinds)
    assert payload > 6 * 3 * len(marker), f"{payload} bytes on links between node-1 and node-2 while 6 requests went there"
    assert records >= 6, f"{records} TLS records with data in {len(fields)} packets"
    for spelling in spellings(marker):
        assert spelling not in captured, f"{spelling!r} crosses the node network in the clear"
    direct = kube.run("tshark", "-r", wire.file, "-Y", f"ip.addr=={address} && tcp.len>0", "-T", "fields", "-e", "frame.number").stdout
    assert not direct.strip(), f"packets went to the pod past the link: {direct}"
    report(f"{payload:,} bytes in {records} TLS records between the nodes, no marker; {inside.count(marker.encode())} on the pod's side")


# Pods that talk to pods of every node.

# So many servers, and as many clients. E2E_CROWD=20 is for a machine with little memory (300 pods: some 4 GB).
CROWD = int(os.environ.get("E2E_CROWD", "150"))
# Requests a second of each client.
CROWD_RATE = 2


def test_handshakes_grow_with_nodes_and_not_with_pods(mesh, report):
    """300 pods on three nodes, half of them asking and half of them answering, while every proxy is young: its counters begin with
    its start, and links are few."""
    manifest = mesh.with_environment((mesh.HERE / "manifests/crowd.yaml").read_text())
    kube.apply(manifest.replace("REPLICAS", str(CROWD)).replace("RATE", str(CROWD_RATE)), "shop")
    try:
        began = time.time()
        before = mesh.proxies()
        kube.kubectl("rollout", "restart", "ds/posthouse", "-n", mesh.NAMESPACE)
        for name in ("crowd-server", "crowd-client"):
            kube.rolled_out(f"deploy/{name}", "shop", seconds=300)
        kube.rolled_out("ds/posthouse", mesh.NAMESPACE)
        # An old one that still drains would be asked for its metrics, too.
        kube.until(
            "the proxies of before are gone",
            lambda: not set(before.values()) & set(kube.kubectl("get", "pods", "-n", mesh.NAMESPACE, "-o", "name").replace("pod/", "").split()),
            seconds=90, every=0.5,
        )
        up = time.time() - began
        time.sleep(20)
        out = {number: trust.handshakes(number, "out") for number in (1, 2, 3)}
        counts = {number: (trust.handshakes(number, "out", result="ok"), trust.handshakes(number, "in", result="ok")) for number in out}
        log = kube.kubectl(
            "logs", "-n", "shop", "-l", "app=crowd-client", "--prefix", "--tail=-1", f"--max-log-requests={CROWD + 20}", timeout=180,
        )
        pairs, sent = collections.Counter(), 0
        for line in log.splitlines():
            place, _, words = line.partition(" ")
            if not words.startswith("{"):
                continue
            for server, count in json.loads(words).get("by_pod", {}).items():
                pairs[place, server] += count
                sent += count
        clients, servers = ({pair[end] for pair in pairs} for end in (0, 1))
        told = ", ".join(f"node-{number} {ok:.0f} out and {taken:.0f} in" for number, (ok, taken) in sorted(counts.items()))
        report(
            f"{2 * CROWD} pods up after {up:.0f} s; {len(pairs):,} pairs of {len(clients)} clients and {len(servers)} servers, "
            f"{sent:,} answers; handshakes: {told}"
        )
        assert len(clients) == CROWD and len(servers) >= 0.95 * CROWD, (len(clients), len(servers))
        assert len(pairs) >= 10 * CROWD, f"only {len(pairs)} pairs of pods talked"
        # Each node to both others, at least; and of all results, so that failed ones count, too.
        assert all(ok >= 2 for ok, _ in counts.values()), counts
        assert sum(out.values()) < 50, out
    finally:
        kube.kubectl("delete", "deploy/crowd-server", "deploy/crowd-client", "service/crowd", "-n", "shop", "--ignore-not-found", "--wait=false")

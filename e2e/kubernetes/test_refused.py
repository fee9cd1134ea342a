"""What must not work: foreign clients on the outbound port, and addresses that a user writes into an EndpointSlice."""

import json

import pytest

import kube
import nodes


def node_address(name):
    addresses = kube.get("node", name)["status"]["addresses"]
    return next(address["address"] for address in addresses if address["type"] == "InternalIP")


def test_a_pod_of_another_node_is_refused_at_once(mesh, report):
    first, second = sorted(mesh.proxies())[:2]
    pod = mesh.client(first)
    own = mesh.ask(pod, "--proxy", f"http://{node_address(first)}:4140", "http://echo.shop/")
    assert own["status"] == 200

    def refused():
        """The 403, which a client that is told before it has asked may miss."""
        other = mesh.ask(pod, "--proxy", f"http://{node_address(second)}:4140", "http://echo.shop/", check=False)
        assert other.get("status") in (None, 403), other
        return other if "status" in other else None

    # Known from elsewhere, so there is no wait: one that is not known is held for 3 s, each time.
    other = kube.until(
        "it is told why within a second", lambda: (other := refused()) and other["took_ms"] < 1000 and other, seconds=20
    )
    report(f"a pod of {first} at {second}'s port 4140: {other['status']}, after {other['took_ms']:.0f} ms")


@pytest.mark.own
def test_the_node_network_is_refused(mesh, report):
    """Another node, a machine of the node network that is no node, and the machine that the API server runs on."""
    asked = f"http://{nodes.address(1)}:4140"
    answers = {"node-1 itself": nodes.curl_on_node(1, "-x", asked, "http://echo.shop/")}
    assert answers["node-1 itself"][1] == 200, answers
    answers["node-2"] = nodes.curl_on_node(2, "-x", asked, "http://echo.shop/")
    answers["the API server's machine"] = nodes.curl([], "-x", asked, "http://echo.shop/")
    metrics = f"http://{nodes.address(1)}:9991/livez"
    with nodes.Outsider("10.77.0.99/24") as outsider:
        assert outsider.curl(metrics)[1] == 200, "it does reach node-1"
        answers["another machine of the node network"] = outsider.curl("-x", asked, "http://echo.shop/")
        # Not in any pod range, and nobody's address.
        nodes.sh("ip -n ${NS}outsider addr add 10.88.200.7/32 dev lo; ip route add 10.88.200.7/32 dev $BR; "
                 "ip -n ${NS}1 route add 10.88.200.7/32 via 10.77.0.99")
        try:
            assert outsider.curl("--interface", "10.88.200.7", metrics)[1] == 200, "it does reach node-1"
            answers["an address outside of all pod ranges"] = outsider.curl("--interface", "10.88.200.7", "-x", asked, "http://echo.shop/")
        finally:
            nodes.sh("ip route del 10.88.200.7/32; ip -n ${NS}1 route del 10.88.200.7/32", check=False)
    refused = {who: answer for who, answer in answers.items() if who != "node-1 itself"}
    assert all(status == 403 for _, status, _ in refused.values()), refused
    report(f"refused at node-1's port 4140: {', '.join(refused)}")


@pytest.mark.own
def test_the_link_port_takes_only_nodes(mesh):
    with nodes.Outsider("10.77.0.99/24") as outsider:
        assert outsider.curl(f"http://{nodes.address(1)}:9991/livez")[1] == 200, "it does reach node-1"
        code, status, _ = outsider.curl("--http2-prior-knowledge", f"http://{nodes.address(1)}:4141/")
        # 28 would be curl's own time limit: the proxy closes at once.
        assert code not in (0, 28) and status == 0, (code, status)
    pod = mesh.client("node-2")
    answer = mesh.ask(pod, "--proxy", f"http://{nodes.address(1)}:4141", "http://echo.shop/", check=False)
    assert "status" not in answer, answer


def refusal(answer):
    """The words of a proxy that knows an address and does not dial it; None while it does not know it yet."""
    assert answer.get("status") in (500, 502, 503), f"not refused: {answer}"
    words = answer["headers"]["proxy-status"]
    if "destination_ip_prohibited" in words or ", 1 refused (" in words:
        return words.split("details=", 1)[1][:160]
    return None


# What a user may write, and how much else the slice says: nothing, a node's name, or that node's host-network pod.
ADDRESSES = [
    ("cloud metadata", "IPv4", "169.254.169.254", 80),
    ("cloud metadata over IPv6", "IPv6", "fd00:ec2::254", 80),
    ("loopback", "IPv4", "127.0.0.1", 9990),
    ("loopback in IPv6", "IPv6", "::1", 9990),
    ("IPv4-mapped metadata", "IPv6", "::ffff:169.254.169.254", 80),
    ("NAT64 of loopback", "IPv6", "64:ff9b::7f00:1", 9990),
    ("unspecified", "IPv4", "0.0.0.0", 9990),
    ("multicast", "IPv4", "224.0.0.1", 80),
    ("the kubelet of the first node", "IPv4", "NODE-1", 10250),
    ("the first node's admin port", "IPv4", "NODE-1", 9990),
    ("the second node's admin port", "IPv4", "NODE-2", 9990),
    ("the second node's metrics port", "IPv4", "NODE-2", 9991),
    ("the second node's outbound port", "IPv4", "NODE-2", 4140),
]
# Nothing in the API tells a bridge's own address from a machine outside of the cluster, unless the slice names the node.
GATEWAY = ("the gateway of the first node's pods", "IPv4", "GATEWAY-1", 10250)
CASES = [(*address, says) for says in ("nothing", "node", "pod") for address in ADDRESSES] + [
    (*GATEWAY, says) for says in ("node", "pod")
]


@pytest.mark.parametrize(
    "number, what, family, address, port, says", [(at, *case) for at, case in enumerate(CASES)],
    ids=[f"{case[0]}, named: {case[4]}" for case in CASES],
)
def test_an_address_in_an_endpointslice(mesh, report, number, what, family, address, port, says):
    """The API itself refuses some; what it lets through, the proxy refuses, whichever node the slice names."""
    first, second = sorted(mesh.proxies())[:2]
    owner = second if address == "NODE-2" else first
    if address.startswith("NODE-"):
        address = node_address(owner)
    elif address == "GATEWAY-1":
        address = kube.get("node", first)["spec"]["podCIDR"].split("/")[0].rsplit(".", 1)[0] + ".1"
    endpoint = {"addresses": [address], "conditions": {"ready": True}}
    if says in ("node", "pod"):
        endpoint["nodeName"] = owner
    if says == "pod":
        pod = kube.get("pod", mesh.proxies()[owner], "-n", mesh.NAMESPACE)["metadata"]
        endpoint["targetRef"] = {"kind": "Pod", "namespace": pod["namespace"], "name": pod["name"], "uid": pod["uid"]}
    # A name of its own: a proxy may still know the case before.
    name = f"evil-{number}"
    piece = {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
        "metadata": {"name": f"{name}-1", "labels": {"kubernetes.io/service-name": name}},
        "ports": [{"name": "http", "port": port}], "endpoints": [endpoint],
    }
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"name": "http", "port": 80}]}}
    kube.apply(json.dumps(service), "shop")
    try:
        written = kube.run(kube.KUBECTL, "apply", "-n", "shop", "-f", "-", stdin=json.dumps(piece), check=False)
        if written.returncode != 0:
            assert "Invalid value" in written.stderr, written.stderr
            return
        for node in (first, second):
            pod = mesh.client(node)
            said = kube.until(
                f"{node} knows the slice and refuses its address",
                lambda pod=pod: refusal(mesh.ask(pod, f"http://{name}.shop/", check=False)),
                seconds=20,
            )
            assert f"{address}" in said, said
        report(f"{what}: {said[:90]}")
    finally:
        kube.kubectl("delete", f"service/{name}", f"endpointslice/{name}-1", "-n", "shop", "--ignore-not-found")

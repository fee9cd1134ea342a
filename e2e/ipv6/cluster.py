"""Two nodes on one machine: their addresses, the manifests of everything on them, and the processes. What a test starts
here ends with its `stop`, by process id."""

import ipaddress
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

BIN = Path(os.environ["POSTHOUSE_BIN"])
START_SECONDS = 30
NODES = ("a", "b")
# Nothing listens on these: only the proxies know them.
CLUSTER_IPS = {6: "fd77:c::80", 4: "192.0.2.80"}


def node_ip(node, family=6):
    return f"fd77:{node}::1" if family == 6 else f"127.0.8{1 + NODES.index(node)}.1"


def pod_ip(node, number, family=6):
    """The decimal digits of `number` end the address in both families."""
    return f"fd77:{node}::{number}" if family == 6 else f"127.0.8{1 + NODES.index(node)}.{number}"


def pod_cidr(node, family=6):
    """Holds the node's own address, too, as some networks have it: it must not count as a pod for that."""
    return f"fd77:{node}::/64" if family == 6 else f"127.0.8{1 + NODES.index(node)}.0/24"


def literal(ip, port):
    """`ip:port` as an authority has it."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def until(what, condition, seconds=START_SECONDS):
    """Waits for a condition and returns its value; `what` is told when it does not come."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


def set_up_interface():
    """Each address that nodes, pods and strangers have here."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    numbers = (1, 10, 11, 12, 20, 99)
    # 127.0.0.0/8 is there already.
    addresses = [pod_ip(node, number) for node in NODES for number in numbers] + ["fd77:9::9"]
    for address in addresses:
        # Without `nodad` an address could be unusable for its first second.
        added = subprocess.run(
            ["ip", "-6", "address", "add", f"{address}/128", "dev", "lo", "nodad"], capture_output=True, text=True,
        )
        if added.returncode != 0:
            sys.exit(f"e2e/ipv6: this system has no IPv6: {added.stderr.strip()}")


def node(name, families):
    return {
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": f"node-{name}"},
        "spec": {"podCIDR": pod_cidr(name, families[0]), "podCIDRs": [pod_cidr(name, family) for family in families]},
        "status": {"addresses": [{"type": "InternalIP", "address": node_ip(name, family)} for family in families]},
    }


def pod(name, on, addresses):
    return {
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "demo", "uid": f"{name}-uid"},
        "spec": {"nodeName": f"node-{on}", "serviceAccountName": "default"},
        "status": {"phase": "Running", "podIP": addresses[0], "podIPs": [{"ip": ip} for ip in addresses]},
    }


def service(name, port, cluster_ips=(), namespace="demo", port_name="main", protocol=None):
    ips = list(cluster_ips) or ["None"]
    entry = {"name": port_name, "port": port, "protocol": "TCP"} | ({"appProtocol": protocol} if protocol else {})
    return {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": ips[0], "clusterIPs": ips, "ports": [entry]},
    }


def slice_of(name, port, endpoints, namespace="demo", port_name="main", family=6):
    """An EndpointSlice; `endpoints` are (address, node, pod or None)."""
    def endpoint(address, on, pod):
        target = {"kind": "Pod", "namespace": namespace, "name": pod, "uid": f"{pod}-uid"}
        return {"addresses": [address], "conditions": {"ready": True}, "nodeName": f"node-{on}"} | (
            {"targetRef": target} if pod else {})

    return {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": f"{name}-ipv{family}", "namespace": namespace,
                     "labels": {"kubernetes.io/service-name": name}},
        "addressType": f"IPv{family}",
        "ports": [{"name": port_name, "port": port, "protocol": "TCP"}],
        "endpoints": [endpoint(*one) for one in endpoints],
    }


def peers(families):
    """The headless Service by which the proxies find each other, a slice a family."""
    endpoints = lambda family: [(node_ip(name, family), name, None) for name in NODES]
    return [service("posthouse", 4141, namespace="posthouse", port_name="link")] + [
        slice_of("posthouse", 4141, endpoints(family), "posthouse", "link", family) for family in families
    ]


class Cluster:
    """The proxies and pods of one test class."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory(prefix="posthouse-ipv6-")
        self.source = Path(self.folder.name, "manifests")
        self.source.mkdir()
        self.logs = {}
        self.children = []

    def write(self, objects):
        text = "\n".join(json.dumps(one) for one in objects)
        fresh = Path(self.folder.name, "fresh.json")
        fresh.write_text(text)
        fresh.rename(self.source / "all.json")

    def spawn(self, name, *arguments):
        self.logs[name] = Path(self.folder.name, f"{name}.log")
        with self.logs[name].open("wb") as log:
            # It ends with us even if we are killed; else `stop` ends it.
            command = ["setpriv", "--pdeathsig", "KILL", *map(str, arguments)]
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.children.append((name, child))

    def start_app(self, kind, ip, port, name, on):
        self.spawn(f"{name}-{ip}", BIN / "posthouse-demo-app", kind, "--listen", literal(ip, port), "--pod", name,
                   "--node", f"node-{on}")

    def start_proxy(self, name, families, *flags):
        # The link and metrics listeners are left to their defaults: ports of the first node address.
        self.spawn(
            f"posthouse-{name}", BIN / "posthouse", "run", "--source", f"dir:{self.source}", "--node-name", f"node-{name}",
            "--node-ip", ",".join(node_ip(name, family) for family in families), "--workers", "1",
            "--admin-listen", literal(node_ip(name), 9990), *flags,
        )
        url = f"http://{literal(node_ip(name, families[0]), 9991)}/readyz"
        until(f"the proxy of node-{name} is ready", lambda: self.all_alive() and answers(url))

    def all_alive(self):
        for name, child in self.children:
            assert child.poll() is None, f"{name} ended:\n{self.logs[name].read_text()[-2000:]}"
        return True

    def admin(self, name, path):
        with urllib.request.urlopen(f"http://{literal(node_ip(name), 9990)}{path}", timeout=10) as answer:
            return json.load(answer)

    def stop(self):
        """Twice does no harm."""
        children, self.children = self.children, []
        for _, child in children:
            child.terminate()
        for _, child in children:
            try:
                child.wait(10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self.folder.cleanup()


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def links_to(ip):
    """The addresses that the links to a node's link port come from."""
    shown = subprocess.run(["ss", "-Htn", "state", "established", f"dst {literal(ip, 4141)}"],
                           capture_output=True, text=True, check=True).stdout
    # Columns: queues, then local and peer address.
    return {ipaddress.ip_address(line.split()[2].rpartition(":")[0].strip("[]")) for line in shown.splitlines()}

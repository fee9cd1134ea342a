"""IPv6 from end to end: listeners, node addresses, slices, literals in authorities, links, refusals; then nodes of both
families. Run by run.sh, within a network namespace; arguments choose tests by a part of their name."""

import json
import re
import signal
import subprocess
import sys
import unittest

from cluster import (CLUSTER_IPS, NODES, Cluster, links_to, literal, node, node_ip, peers, pod, pod_ip, service,
                     set_up_interface, slice_of, until)
from wire import Connection

CLIENT = 20
# All that were ever started, for an end in the middle.
clusters = []
PROXY = {name: literal(node_ip(name), 4140) for name in NODES}
# The ways in which a pod of node-a or node-b hands over a request.
WAYS = {
    "absolute form": lambda outbound: ["--proxy", f"http://{outbound}"],
    "origin form": lambda outbound: ["--connect-to", f"::{outbound}"],
    "h2c": lambda outbound: ["--http2-prior-knowledge", "--connect-to", f"::{outbound}"],
    "tunnel": lambda outbound: ["--proxytunnel", "--proxy", f"http://{outbound}"],
    "h2c in a tunnel": lambda outbound: ["--http2-prior-knowledge", "--proxytunnel", "--proxy", f"http://{outbound}"],
}


def curl(url, *arguments, way="absolute form", at="a", outbound=None, source=None, fail=True):
    """The body of an answer to a pod of node `at`; with `fail` off: status, fields and body as text."""
    command = ["curl", "--globoff", "--silent", "--show-error", "--max-time", "20", "--interface",
               source or pod_ip(at, CLIENT), *WAYS[way](outbound or PROXY[at]), "--fail" if fail else "--include",
               *arguments, url]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert ran.returncode == 0 or not fail, f"{' '.join(command)}: {ran.stderr}"
    return ran.stdout


def refusal(answer):
    """Status and token of an answer that a proxy made, with its words."""
    status = re.match(r"HTTP/\S+ (\d+)", answer)
    token = re.search(r"proxy-status: posthouse; error=(\w+)", answer, re.IGNORECASE)
    assert status and token, f"not refused by a proxy: {answer!r}"
    return int(status[1]), token[1], answer.replace("\r", "").split("\n\n")[-1]


def each(cases):
    """One test for each case, named after it."""
    def mark(function):
        function.cases = cases
        return function
    return mark


def expand(kind):
    for name, function in list(vars(kind).items()):
        for number, case in enumerate(getattr(function, "cases", ())):
            words = case if isinstance(case, tuple) else (case,)
            def test(self, function=function, words=words):
                function(self, *words)
            setattr(kind, f"{name} [{' '.join(words)}]", test)
        if hasattr(function, "cases"):
            delattr(kind, name)
    return kind


class OnCluster(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster()
        clusters.append(cls.cluster)
        cls.addClassCleanup(cls.cluster.stop)
        cls.start(cls.cluster)

    def tearDown(self):
        self.cluster.all_alive()

    def assert_answered_by(self, pods, url, **how):
        """By each of these, given a fair number of calls, and by no others."""
        seen = set()
        for _ in range(40 * len(pods)):
            seen.add(curl(url, **how).split()[2])
            if seen >= pods:
                break
        self.assertEqual(seen, pods)


@expand
class IPv6Only(OnCluster):
    """Neither node has an IPv4 address."""

    # What a slice of the Service `trap-N` names. A server listens wherever one can, so only the proxies' rules stand
    # between it and the client.
    TRAPS = ["::1", "fe80::1", "::ffff:127.0.0.1", "fd00:ec2::254", "::", "ff02::1", "64:ff9b::7f00:1", node_ip("a")]

    @classmethod
    def start(cls, cluster):
        objects = [node(name, [6]) for name in NODES] + peers([6])
        objects += [pod(f"client-{name}", name, [pod_ip(name, CLIENT)]) for name in NODES]
        apps = [("hello", 10, 80, "http"), ("echo", 11, 80, None), ("greeter", 12, 50051, "grpc")]
        for at, (app, number, port, protocol) in enumerate(apps):
            objects.append(service(app, port, [CLUSTER_IPS[6][:-1] + str(at)], protocol=protocol))
            members = [(pod_ip(name, number), name, f"{app}-{name}") for name in NODES]
            objects.append(slice_of(app, 8080, members))
            for ip, on, name in members:
                objects.append(pod(name, on, [ip]))
                cluster.start_app(app, ip, 8080, name, on)
        for at, address in enumerate(cls.TRAPS):
            objects += [service(f"trap-{at}", 80), slice_of(f"trap-{at}", 8080, [(address, "a", None)])]
        for at, ip in enumerate(["::1", "127.0.0.1", node_ip("a")]):
            cluster.start_app("hello", ip, 8080, f"behind-the-wall-{at}", "a")
        cluster.write(objects)
        for name in NODES:
            cluster.start_proxy(name, [6], "--outbound-listen", PROXY[name])
        until("all apps listen", lambda: cluster.all_alive() and all(
            listens(ip, 8080) for ip in [pod_ip(n, k) for n in NODES for k in (10, 11, 12)] + ["::1", "127.0.0.1"]))

    @each([(way, at) for way in WAYS for at in NODES])
    def test_a_name_is_answered_by_pods_of_both_nodes(self, way, at):
        self.assert_answered_by({"hello-a", "hello-b"}, "http://hello.demo/", way=way, at=at)

    @each([(way, host) for way in WAYS for host in ("[fd77:b::10]:8080", "[FD77:00B:0:0:0:0:0:10]:8080")])
    def test_a_pods_literal_leads_to_that_pod(self, way, host):
        for _ in range(5):
            self.assert_answered_by({"hello-b"}, f"http://{host}/", way=way)

    @each([(way, port) for way in WAYS for port in ("", ":80")])
    def test_a_cluster_address_leads_to_its_service(self, way, port):
        url = f"http://[{CLUSTER_IPS[6][:-1]}0]{port}/"
        self.assert_answered_by({"hello-a", "hello-b"}, url, way=way)

    def test_a_short_name_is_of_the_namespace_of_the_client(self):
        """So the client's IPv6 address told which pod it is."""
        self.assertIn("hello from", curl("http://hello/"))

    @each(WAYS)
    def test_the_pod_sees_the_literal_as_it_was_written(self, way):
        answer = json.loads(curl("http://[fd77:b::11]:8080/some/path", way=way))
        host = answer["authority"] or answer["headers"]["host"][0]
        self.assertEqual((host, answer["pod"]), ("[fd77:b::11]:8080", "echo-b"))
        self.assertEqual([name for name in answer["headers"] if name.startswith("posthouse-")], [])

    def test_grpc_by_name(self):
        call = b"\0\0\0\0\x05\x0a\x03you"
        command = ["curl", "--silent", "--show-error", "--max-time", "20", "--include", *WAYS["h2c"](PROXY["a"]),
                   "--interface", pod_ip("a", CLIENT), "--header", "content-type: application/grpc",
                   "--header", "te: trailers", "--data-binary", "@-",
                   "http://greeter.demo:50051/helloworld.Greeter/SayHello"]
        said = set()
        for _ in range(30):
            answer = subprocess.run(command, input=call, capture_output=True, check=True).stdout
            said.update(re.findall(rb"Hello you from greeter-[ab] on node-[ab]", answer))
            self.assertIn(b"grpc-status: 0", answer)
        self.assertEqual(said, {b"Hello you from greeter-a on node-a", b"Hello you from greeter-b on node-b"})

    @each(["absolute form", "tunnel"])
    def test_a_websocket_to_a_literal(self, way):
        host = "[fd77:b::11]:8080"
        with Connection((node_ip("a"), 4140), source=pod_ip("a", CLIENT)) as connection:
            if way == "tunnel":
                connection.tunnel(host).websocket("/ws", host)
            else:
                connection.websocket(f"http://{host}/ws", host)
            connection.send_message(b"over IPv6")
            self.assertEqual(connection.read_message(), (2, b"over IPv6"))

    def test_the_link_runs_over_ipv6(self):
        curl("http://[fd77:b::10]:8080/")
        curl("http://[fd77:a::10]:8080/", at="b")
        for near, far in (("a", "b"), ("b", "a")):
            self.assertEqual({str(ip) for ip in links_to(node_ip(far))}, {node_ip(near)})
            peers = {peer["node"]: peer for peer in self.cluster.admin(near, "/peers")["peers"]}
            there = peers[f"node-{far}"]
            self.assertEqual((there["address"], there["ready"]), (literal(node_ip(far), 4141), True))
            self.assertGreaterEqual(there["link"]["connections"], 1)
            self.assertTrue(peers[f"node-{near}"]["this_node"])

    @each([
        ("[::1]:8080", "destination_ip_prohibited", "loopback"),
        ("[0:0:0:0:0:0:0:1]:8080", "destination_ip_prohibited", "loopback"),
        ("[::]:8080", "destination_ip_prohibited", "unspecified"),
        ("[fe80::1]:8080", "destination_ip_prohibited", "link-local"),
        ("[ff02::1]:8080", "destination_ip_prohibited", "multicast"),
        ("[::ffff:127.0.0.1]:8080", "destination_ip_prohibited", "IPv6 spelling"),
        ("[::ffff:7f00:1]:8080", "destination_ip_prohibited", "IPv6 spelling"),
        ("[::127.0.0.1]:8080", "destination_ip_prohibited", "IPv6 spelling"),
        ("[64:ff9b::127.0.0.1]:8080", "destination_ip_prohibited", "IPv6 spelling"),
        ("[fd00:ec2::254]:80", "destination_ip_prohibited", "metadata"),
        ("127.0.0.1:8080", "destination_ip_prohibited", "loopback"),
        ("[fd77:a::1]:8080", "destination_ip_prohibited", "node's own"),
        ("[fd77:b::1]:10250", "destination_ip_prohibited", "node's own"),
        ("[fd77:b::1]:4140", "destination_ip_prohibited", "node's own"),
        ("[fd77:a::1]:4140", "proxy_loop_detected", "this proxy itself"),
        ("[fd77:a::1]:4141", "proxy_loop_detected", "this proxy itself"),
        ("[fd77:a::1]:9990", "proxy_loop_detected", "this proxy itself"),
        ("[fd77:b::99]:8080", "destination_not_found", "neither"),
        ("[fd77:b::10]:8081", "destination_not_found", "neither"),
        ("[2001:db8::1]:80", "destination_not_found", "neither"),
    ])
    def test_a_literal_is_refused(self, host, token, words):
        for form in ("absolute form", "tunnel", "h2c"):
            answer = curl(f"http://{host}/", way=form, fail=False)
            status, got, said = refusal(answer)
            self.assertEqual(got, token, (form, answer))
            self.assertTrue(400 <= status < 600, answer)
            if form != "tunnel":
                self.assertIn(words, said)
            self.assertNotIn("behind-the-wall", answer)

    @each(["[fe80::1%lo]", "[fe80::1%25lo]", "[::1", "[127.0.0.1]", "fd77:b::10", "[fd77:b::10]8080", "[fd77:b::10]:",
           "[fd77:b::10]:08080", "[[fd77:b::10]]:8080", "user@[fd77:b::10]:8080", "[v1.fd77]:80"])
    def test_a_malformed_literal_is_a_bad_request(self, host):
        for method, target in (("GET", f"http://{host}/"), ("GET", "/"), ("CONNECT", host)):
            with Connection((node_ip("a"), 4140), source=pod_ip("a", CLIENT)) as connection:
                connection.send_head(method, target, host)
                self.assertEqual(connection.read_head()[0], 400, (method, target))

    @each([(str(at), address) for at, address in enumerate(TRAPS)])
    def test_an_endpoint_that_no_pod_can_have_is_never_dialled(self, at, address):
        endpoint, = self.cluster.admin("a", f"/services/demo/trap-{at}")["ports"][0]["endpoints"]
        self.assertIn("refused", endpoint)
        for name in NODES:
            _, token, _ = refusal(curl(f"http://trap-{at}.demo/", at=name, fail=False))
            self.assertIn(token, ("destination_unavailable", "destination_ip_prohibited"))

    @each(["fd77:b::20", "fd77:b::10", "fd77:b::99", "fd77:b::1"])
    def test_a_client_of_another_node_is_refused(self, source):
        """Another node's pods, known and unknown, and that node itself."""
        for url in ("http://hello.demo/", "http://[fd77:b::10]:8080/"):
            answer = curl(url, source=source, fail=False)
            self.assertEqual(refusal(answer)[0], 403, answer)

    def test_a_client_of_no_node_is_refused(self):
        self.assertEqual(refusal(curl("http://hello.demo/", source="fd77:9::9", fail=False))[0], 403)

    def test_the_node_itself_is_served_but_is_no_pod(self):
        """Its address lies in its own podCIDR."""
        self.assertIn("hello from", curl("http://hello.demo/", source=node_ip("a")))
        self.assertIn("not a known pod", refusal(curl("http://hello/", source=node_ip("a"), fail=False))[2])

    def test_an_unknown_address_of_the_nodes_range_is_served_unidentified(self):
        """A pod that the API does not show yet."""
        self.assertIn("hello from", curl("http://hello.demo/", source=pod_ip("a", 99)))

    def test_only_peers_may_link(self):
        """A pod that speaks to the link port is sent away."""
        with Connection((node_ip("b"), 4141), source=pod_ip("a", CLIENT)) as connection:
            connection.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            try:
                self.assertEqual(connection.reader.read(), b"")
            except ConnectionResetError:
                pass

    def test_nothing_here_used_ipv4(self):
        """Every socket of the two proxies, by their process ids."""
        proxies = {str(child.pid) for name, child in self.cluster.children if name.startswith("posthouse")}
        owners = {}
        for family in "46":
            shown = subprocess.run(["ss", f"-Hantp{family}"], capture_output=True, text=True, check=True).stdout
            owners[family] = proxies & set(re.findall(r"pid=(\d+)", shown))
        self.assertEqual(owners, {"4": set(), "6": proxies})


@expand
class BothFamilies(OnCluster):
    """Nodes, clients and pods with an address of each family; one process an address, which tells its own family."""

    FAMILIES = ()

    @classmethod
    def start(cls, cluster):
        families = cls.FAMILIES
        objects = [node(name, families) for name in NODES] + peers(families)
        objects += [pod(f"client-{name}", name, [pod_ip(name, CLIENT, f) for f in families]) for name in NODES]
        objects += [pod(f"hello-{name}", name, [pod_ip(name, 10, f) for f in families]) for name in NODES]
        objects.append(service("hello", 80, [CLUSTER_IPS[f] for f in families], protocol="http"))
        for family in families:
            objects.append(slice_of(
                "hello", 8080, [(pod_ip(n, 10, family), n, f"hello-{n}") for n in NODES], family=family))
            for name in NODES:
                cluster.start_app("hello", pod_ip(name, 10, family), 8080, f"hello-{name}-ipv{family}", name)
        cluster.write(objects)
        for name in NODES:
            cluster.start_proxy(name, families, *cls.outbound_flags(name))
        until("all apps listen", lambda: cluster.all_alive() and all(
            listens(pod_ip(name, 10, family), 8080) for name in NODES for family in families))

    @classmethod
    def outbound_flags(cls, name):
        return [flag for family in cls.FAMILIES for flag in ("--outbound-listen", literal(node_ip(name, family), 4140))]

    ALL = {f"hello-{name}-ipv{family}" for name in NODES for family in (4, 6)}

    @each([(way, client, url) for way in ("absolute form", "h2c", "tunnel") for client in "46" for url in (
        "http://hello.demo/", "http://hello/", f"http://[{CLUSTER_IPS[6]}]/", f"http://{CLUSTER_IPS[4]}/")])
    def test_the_pods_of_both_slices_answer_clients_of_both_families(self, way, client, url):
        family = int(client)
        how = {"outbound": literal(node_ip("a", family), 4140), "source": pod_ip("a", CLIENT, family)}
        self.assert_answered_by(self.ALL, url, way=way, **how)

    @each([(client, target) for client in "46" for target in "46"])
    def test_a_literal_of_either_family(self, client, target):
        family = int(client)
        answer = curl(f"http://{literal(pod_ip('b', 10, int(target)), 8080)}/",
                      outbound=literal(node_ip("a", family), 4140), source=pod_ip("a", CLIENT, family))
        self.assertEqual(answer.split()[2], f"hello-b-ipv{target}")

    @each([(client, target) for client in "46" for target in "46"])
    def test_both_addresses_of_the_proxy_are_loops(self, client, target):
        family = int(client)
        answer = curl(f"http://{literal(node_ip('a', int(target)), 4140)}/", fail=False,
                      outbound=literal(node_ip("a", family), 4140), source=pod_ip("a", CLIENT, family))
        self.assertEqual(refusal(answer)[1], "proxy_loop_detected")

    @each([("4", "[::ffff:127.0.82.10]"), ("6", "[::ffff:127.0.82.10]"), ("6", "[::ffff:127.0.82.1]")])
    def test_an_ipv4_pod_in_ipv6_spelling_is_refused(self, client, host):
        family = int(client)
        answer = curl(f"http://{host}:8080/", fail=False, outbound=literal(node_ip("a", family), 4140),
                      source=pod_ip("a", CLIENT, family))
        self.assertEqual(refusal(answer)[1], "destination_ip_prohibited")

    @each(["4", "6"])
    def test_a_client_of_another_node_is_refused(self, client):
        family = int(client)
        for number in (CLIENT, 99, 1):
            answer = curl("http://hello.demo/", fail=False, outbound=literal(node_ip("a", family), 4140),
                          source=pod_ip("b", number, family))
            self.assertEqual(refusal(answer)[0], 403, answer)

    def test_the_link_takes_the_family_of_the_nodes_first_address(self):
        curl(f"http://{literal(pod_ip('b', 10), 8080)}/")
        first, second = self.FAMILIES
        peers = {peer["node"]: peer for peer in self.cluster.admin("a", "/peers")["peers"]}
        self.assertEqual(peers["node-b"]["address"], literal(node_ip("b", first), 4141))
        self.assertEqual({str(ip) for ip in links_to(node_ip("b", first))}, {node_ip("a", first)})
        self.assertEqual(links_to(node_ip("b", second)), set())


class IPv6First(BothFamilies):
    FAMILIES = (6, 4)


class IPv4First(BothFamilies):
    """And the outbound listeners take every address of the machine: node-a's alone, since both are on one."""

    FAMILIES = (4, 6)

    @classmethod
    def outbound_flags(cls, name):
        if name == "b":
            return super().outbound_flags(name)
        return ["--outbound-listen", "0.0.0.0:4140,[::]:4140"]


def listens(ip, port):
    try:
        Connection((ip, port), timeout=5).close()
    except OSError:
        return False
    return True


class Counted(unittest.TextTestResult):
    """Prints a line only for what failed, and counts what passed."""

    passed = 0

    def addSuccess(self, test):
        super().addSuccess(test)
        self.passed += 1


def main():
    # Ends the run as Ctrl-C does; unittest would take any other exception for a failed test.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    set_up_interface()
    chosen = unittest.TestLoader()
    if sys.argv[1:]:
        chosen.testNamePatterns = [f"*{part}*" for part in sys.argv[1:]]
    suites = [chosen.loadTestsFromTestCase(kind) for kind in (IPv6Only, IPv6First, IPv4First)]
    try:
        result = unittest.TextTestRunner(resultclass=Counted).run(unittest.TestSuite(suites))
    except KeyboardInterrupt:
        sys.exit("e2e/ipv6: interrupted")
    finally:
        for cluster in clusters:
            cluster.stop()
    failed = len(result.failures) + len(result.errors)
    print(f"{result.passed} passed, {failed} failed", flush=True)
    sys.exit(0 if failed == 0 and result.passed else 1)


if __name__ == "__main__":
    main()

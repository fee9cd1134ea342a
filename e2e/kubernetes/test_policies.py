"""AuthorizationPolicies in the cluster: a part of the policies' matrix played with real namespaces, accounts, pods and nodes; what is
broken, what is in dry run, and tunnels that are open when a policy comes."""

import concurrent.futures
import json
import subprocess
import sys
from pathlib import Path

import pytest

import kube
import matrix
import nodes

pytestmark = pytest.mark.own

RESOURCE = "authorizationpolicies.posthouse.io"
TUNNEL = Path(__file__).with_name("tunnel_client.py")


def remove_policies():
    kube.kubectl("delete", RESOURCE, "-A", "-l", matrix.LABEL, "--ignore-not-found")


@pytest.fixture(scope="module")
def stage(mesh):
    """The matrix' pods and Services; all of it goes with its namespaces."""
    spaces = matrix.namespaces()
    kube.apply("---\n".join(f'{{"apiVersion": "v1", "kind": "Namespace", "metadata": {{"name": "{name}"}}}}\n' for name in spaces))
    try:
        kube.until(
            "each namespace has its default account",
            lambda: set(spaces) <= {
                account["metadata"]["namespace"]
                for account in kube.get("serviceaccounts", "-A", "--field-selector=metadata.name=default")["items"]
            },
            seconds=30,
        )
        objects = matrix.stage()
        kube.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
        wanted = sum(each["kind"] == "Pod" for each in objects)

        def ready():
            pods = kube.get("pods", "-A", "-l", matrix.LABEL)["items"]
            conditions = [c for pod in pods for c in pod["status"].get("conditions", []) if c["type"] == "Ready"]
            return sum(condition["status"] == "True" for condition in conditions) == wanted

        kube.until(f"{wanted} pods of the matrix are ready", ready, seconds=120, every=1)
        yield
    finally:
        remove_policies()
        kube.kubectl("delete", "namespace", *spaces, "--wait=false", "--ignore-not-found")


@pytest.fixture(scope="module")
def views(mesh):
    with mesh.admins() as admins:
        yield admins


def loaded(views, wanted):
    """Returns once every node has exactly these policies, by namespace/name; gives what one node says of them."""
    def view(admin):
        return {f"{each['namespace']}/{each['name']}": each for each in admin.get("/policies")["policies"]}

    kube.until(
        f"every node has {sorted(wanted)}; /policies on {sorted(views)}",
        lambda: all(set(view(admin)) == set(wanted) for admin in views.values()),
        seconds=20, every=0.2,
    )
    return view(views[matrix.TARGET_NODE])


def put(policies, views):
    """Makes these the only policies."""
    remove_policies()
    if policies:
        kube.apply(json.dumps({"apiVersion": "v1", "kind": "List", "items": policies}))
    return loaded(views, {f"{each['metadata']['namespace']}/{each['metadata']['name']}" for each in policies})


def decisions(views, decision):
    return views[matrix.TARGET_NODE].metric("posthouse_policy_decisions_total", decision=decision)


def played(case, http2):
    """What is wrong with a case, None if nothing is. A Service that the asker's proxy does not know yet is waited for."""
    def known():
        came = matrix.ask(case, http2)
        # These are no decisions; a client whose CONNECT is refused has no status (and a tunnel that is closed has none either).
        return came if came[0] not in ((500, 502, 503) if case.tunnel else (0, 500, 502, 503)) else None

    wrong = matrix.verdict(case, kube.until(f"{case.name}: its Service is known", known, seconds=20, every=0.5))
    return wrong and f"{case.file}: {case.name}{' (HTTP/2)' if http2 else ''}: {wrong}"


def ways(case):
    """HTTP/1.1 and HTTP/2; gRPC has no other than the second, tunnels have neither, the node's own curl has the first."""
    if case.file == "grpc":
        return [True]
    return [False] if case.tunnel or "pod" not in case.source else [False, True]


@pytest.mark.parametrize("file", matrix.CASES)
def test_the_matrix(mesh, stage, views, report, file):
    shown = put(matrix.policies(file), views)
    cases = [case for case in matrix.cases() if case.file == file]
    assert len(cases) == len(matrix.CASES[file])
    denied, would = decisions(views, "denied"), decisions(views, "would_deny")
    asks = [(case, http2) for case in cases for http2 in ways(case)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        wrong = [each for each in pool.map(lambda ask: played(*ask), asks) if each]
    assert not wrong, "\n".join(wrong)
    # Also the tunnels were closed by a policy and not by something else.
    assert decisions(views, "denied") - denied >= sum(case.expect == "deny" for case, _ in asks)
    assert decisions(views, "would_deny") - would >= sum(case.would is not None for case, _ in asks)
    if file == "broken":
        broken_policies_say_so(shown)
    report(f"{len(cases)} of {matrix.total()} cases of the matrix are here, in {len(asks)} requests: as written")


def broken_policies_say_so(shown):
    """On the proxies, and on the resource itself."""
    for name in ("expression", "path", "normal"):
        assert not shown[f"m-shop/{name}"]["accepted"] and shown[f"m-shop/{name}"]["message"], shown

        def told(name=name):
            status = kube.get(RESOURCE, name, "-n", "m-shop").get("status", {})
            return [each for each in status.get("conditions", []) if each["type"] == "Accepted"]

        (condition,) = kube.until(f"the policy {name} has the condition Accepted in its status", told, seconds=30, every=0.5)
        assert condition["status"] == "False" and condition["message"], condition


def test_a_good_policy_is_accepted_and_the_api_refuses_what_its_schema_can(stage, views):
    good = matrix.policies("methods")
    put(good, views)
    status = kube.until(
        "the status says Accepted",
        lambda: kube.get(RESOURCE, "read", "-n", "m-shop").get("status", {}).get("conditions"), seconds=30, every=0.5,
    )
    assert [(each["type"], each["status"]) for each in status] == [("Accepted", "True")], status
    bad = {**good[0], "metadata": {"name": "bad", "namespace": "m-shop"}, "spec": {"action": "Permit"}}
    done = kube.run(kube.KUBECTL, "apply", "-f", "-", stdin=json.dumps(bad), check=False)
    assert done.returncode != 0 and "Permit" in done.stderr, done.stderr


class Tunnel:
    """Held open by node-1 itself, through its proxy."""

    def __init__(self, target, seconds):
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", f"{nodes.NAMESPACES}1", sys.executable, str(TUNNEL), nodes.address(1), "4140", target, str(seconds)],
            stdout=subprocess.PIPE, text=True,
        )

    def __enter__(self):
        self.first = self.process.stdout.readline().strip()
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(10)
        self.process.stdout.close()

    def last(self):
        return self.process.stdout.readline().strip()


def test_a_policy_that_comes_ends_an_open_tunnel_and_no_other(mesh, stage, views, report):
    """The tunnels are opaque, to a server that speaks first; one policy comes while both are open."""
    put([], views)
    policy = {
        "apiVersion": "posthouse.io/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "closed", "namespace": "shop", "labels": {matrix.LABEL: ""}},
        "spec": {"action": "Deny", "targetRefs": [{"kind": "Service", "name": "db"}], "rules": [{"from": [{"nodes": ["node-1"]}]}]},
    }

    def revoked():
        return sum(admin.metric("posthouse_tunnels_revoked_total") for admin in views.values())

    before = revoked()
    with Tunnel("db.shop:5432", 30) as tunnel, Tunnel("store.m-cold:9090", 8) as other:
        assert tunnel.first.startswith("open hello from db-"), tunnel.first
        assert other.first.startswith("open hello from "), other.first
        kube.apply(json.dumps(policy))
        loaded(views, {"shop/closed"})
        last = tunnel.last()
        assert last.startswith("ended "), f"{last}; the other tunnel: {other.first}"
        assert other.last().startswith("held "), "a tunnel that the policy does not concern ended, too"
    with Tunnel("db.shop:5432", 2) as again:
        assert not again.first.startswith("open"), f"a new tunnel is let through: {again.first}"
    remove_policies()
    loaded(views, set())
    with Tunnel("db.shop:5432", 1) as again:
        assert again.first.startswith("open hello from db-"), f"the policy is gone, and yet: {again.first}"
    assert revoked() - before == 1
    report(f"the tunnel {last} s after it was opened; the other one held")

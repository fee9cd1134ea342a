"""Installed by Helm: what runs, with which rights; what `posthouse check` says of it; and that an uninstall leaves nothing."""

import json
import time
from pathlib import Path

import pytest

import kube
import nodes


def test_ready_on_every_node_and_confined(mesh):
    names = {node["metadata"]["name"] for node in kube.get("nodes")["items"]}
    assert set(mesh.proxies()) == names
    controllers = kube.pods(mesh.NAMESPACE, "app.kubernetes.io/component=controller")
    assert controllers and all(not pod["spec"].get("hostNetwork") for pod in controllers.values()), controllers
    for name in mesh.proxies().values():
        pod = kube.get("pod", name, "-n", mesh.NAMESPACE)
        assert pod["status"]["containerStatuses"][0]["ready"]
        assert not any("ports" in container for container in pod["spec"]["containers"])


@pytest.mark.own
def test_the_process_has_no_right_at_all(mesh):
    """By the kernel's word, not the manifest's."""
    found = set()
    for number in (1, 2, 3):
        for pid in nodes.processes(number, "posthouse"):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
            # Two numbers: who has the proxies' may share their ports.
            part, uid = ("controller", "41405") if b"controller" in words else ("proxy", "41404")
            found.add((part, number if part == "proxy" else 0))
            assert set(status["Uid"].split()) == {uid}, (words, status["Uid"])
            assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}, status
            assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), status
    assert found == {("proxy", 1), ("proxy", 2), ("proxy", 3), ("controller", 0)}, found


def granted(account, namespace):
    """(group, resource, verb) of every role that a service account of ours is bound to."""
    bindings = kube.get("clusterrolebindings,rolebindings", "-A")["items"]
    rights = set()
    for binding in bindings:
        subjects = [(each.get("namespace"), each["name"]) for each in binding.get("subjects", []) if each["kind"] == "ServiceAccount"]
        if (namespace, account) not in subjects:
            continue
        of, name = binding["roleRef"]["kind"].lower(), binding["roleRef"]["name"]
        home = ["-n", binding["metadata"]["namespace"]] if of == "role" else []
        rights |= {
            (group, resource, verb)
            for rule in kube.get(of, name, *home)["rules"]
            for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]
        }
    return rights


def used(account, namespace):
    """The same of what an account has asked for, by the API server's audit log."""
    asked = set()
    for line in (Path(nodes.sh("echo $LOG").strip()) / "audit.log").read_text().splitlines():
        event = json.loads(line)
        what = event.get("objectRef")
        if what is None or event["user"]["username"] != f"system:serviceaccount:{namespace}:{account}":
            continue
        resource = what["resource"] + (f"/{what['subresource']}" if "subresource" in what else "")
        asked.add((what.get("apiGroup", ""), resource, event["verb"]))
    return asked


@pytest.mark.own
def test_the_roles_have_every_verb_that_is_used_and_no_other(mesh, report):
    """The API server's audit log against the roles. What the controller needs only when an authority is replaced or adopted cannot
    have been used yet (a test of its crate uses all of it); of the proxies' rights each is."""
    rights, asked = granted("posthouse", mesh.NAMESPACE), used("posthouse", mesh.NAMESPACE)
    assert asked == rights, f"used, not granted: {asked - rights}; granted, not used: {rights - asked}"
    report(f"{len(asked)} permissions granted to the proxies, each of them used, none else asked for")
    # `signers` are no requests: the API server looks at that right when a request is approved or signed.
    rights = {right for right in granted("posthouse-controller", mesh.NAMESPACE) if right[1] != "signers"}
    asked = used("posthouse-controller", mesh.NAMESPACE)
    assert asked <= rights, f"used, not granted: {asked - rights}"
    # What it does all the time; without this an empty log would be content, too.
    assert {
        ("certificates.k8s.io", "certificatesigningrequests", "watch"),
        ("certificates.k8s.io", "certificatesigningrequests/approval", "update"),
        ("certificates.k8s.io", "certificatesigningrequests/status", "update"),
        ("coordination.k8s.io", "leases", "update"), ("", "secrets", "get"), ("", "configmaps", "get"),
    } <= asked, asked
    report(f"{len(asked)} of the controller's {len(rights)} permissions used until now; the rest: {sorted(rights - asked)}")


def test_check_says_that_all_is_in_order(mesh, report):
    said = mesh.posthouse("check", "--url", "http://echo.shop/").stdout
    assert "everything is in order" in said.splitlines()[-1], said
    answer = json.loads(mesh.posthouse("check", "--output", "json", "--url", "http://echo.shop/").stdout)
    assert answer["verdict"] == "ok", answer
    looked_at = {check["id"] for check in answer["checks"]}
    assert looked_at == {"api", "clock", "namespace", "permissions", "daemonset", "ports", "version", "node", "certificate", "links", "probe"}
    report(said.splitlines()[-1])


def test_check_finds_what_is_wrong(mesh):
    """A proxy that cannot be scheduled, another program's port, a Service that does not exist."""
    node = sorted(mesh.proxies())[-1]
    kube.apply(json.dumps({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "squatter"},
        "spec": {"terminationGracePeriodSeconds": 1, "nodeName": node, "containers": [{
            "name": "app", "image": "posthouse.invalid/demo-app:dev", "imagePullPolicy": "Never", "args": ["sleep"],
            "ports": [{"containerPort": 4140, "hostPort": 4140}],
        }]},
    }), "shop")
    try:
        kube.kubectl("wait", "--for=condition=Ready", "pod/squatter", "-n", "shop", "--timeout=60s")
        done = mesh.posthouse("check", "--output", "json", "--url", "http://nobody.shop/", check=False)
        assert done.returncode == 1, done.stdout
        checks = json.loads(done.stdout)["checks"]
        failed = {check["id"]: check for check in checks if check["verdict"] == "fail"}
        assert "shop/squatter" in json.dumps(failed["ports"]), failed
        # On the squatter's own node its hostPort may have taken the very port.
        probes = [check for check in checks if check["id"] == "probe" and check["verdict"] == "fail"]
        assert len(probes) == len(mesh.proxies()), probes
        assert sum("destination_not_found" in check["message"] for check in probes) >= len(probes) - 1, probes
    finally:
        kube.kubectl("delete", "pod", "squatter", "-n", "shop", "--ignore-not-found", "--wait=true")


def test_an_uninstall_leaves_nothing_and_a_check_before_the_next_install_is_content(mesh, report):
    """But for the definition of policies: with it every policy would go. What the controller has made (authority, trust bundle, lease)
    goes with its Deployment."""
    kinds = kube.kubectl("api-resources", "--verbs=list", "-o", "name").split()
    kube.helm("uninstall", "posthouse", "-n", mesh.NAMESPACE, "--wait", "--timeout=90s")
    try:
        label = "app.kubernetes.io/instance=posthouse"
        definition = "customresourcedefinition.apiextensions.k8s.io/authorizationpolicies.posthouse.io"

        # What is on its way out (pods with their grace period, what the garbage collector removes) may take that long.
        def left():
            of_the_release = kube.kubectl("get", ",".join(kinds), "-A", "-l", label, "-o", "name", "--ignore-not-found").split()
            in_its_namespace = kube.kubectl(
                "get", "all,sa,secrets,cm,leases,roles,rolebindings,pdb", "-n", mesh.NAMESPACE, "-o", "name"
            ).split()
            return set(of_the_release) - {definition}, set(in_its_namespace) - {"serviceaccount/default", "configmap/kube-root-ca.crt"}

        deadline = time.monotonic() + 90
        while any(found := left()):
            assert time.monotonic() < deadline, f"left behind: {found}"
            time.sleep(1)
        assert kube.kubectl("get", definition, "-o", "name").strip() == definition
        done = mesh.posthouse("check", "--pre")
        assert "in order" in done.stdout.splitlines()[-1], done.stdout
    finally:
        mesh.install()
        mesh.rolled_out()
    report(f"no object of {len(kinds)} kinds is left but the definition of policies; installed again")

"""Installed by Helm: what runs, with which rights; what `posthouse check` says of it; and that an uninstall leaves nothing."""

import json
from pathlib import Path

import pytest

import kube
import nodes


def test_ready_on_every_node_and_confined(mesh):
    names = {node["metadata"]["name"] for node in kube.get("nodes")["items"]}
    assert set(mesh.proxies()) == names
    for name in mesh.proxies().values():
        pod = kube.get("pod", name, "-n", mesh.NAMESPACE)
        assert pod["status"]["containerStatuses"][0]["ready"]
        assert not any("ports" in container for container in pod["spec"]["containers"])


@pytest.mark.own
def test_the_process_has_no_right_at_all(mesh):
    """By the kernel's word, not the manifest's."""
    pids = nodes.processes(1, "posthouse")
    assert pids
    for pid in pids:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
        assert set(status["Uid"].split()) == {"41404"}, status["Uid"]
        assert {status[f"Cap{kind}"] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}, status
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), status


@pytest.mark.own
def test_the_role_has_every_verb_that_is_used_and_no_other(mesh, report):
    """The API server's audit log against the ClusterRole."""
    granted = {
        (group, resource, verb)
        for rule in kube.get("clusterrole", "posthouse")["rules"]
        for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]
    }
    used = set()
    for line in (Path(nodes.sh("echo $LOG").strip()) / "audit.log").read_text().splitlines():
        event = json.loads(line)
        what = event.get("objectRef")
        if what is None or event["user"]["username"] != f"system:serviceaccount:{mesh.NAMESPACE}:posthouse":
            continue
        used.add((what.get("apiGroup", ""), what["resource"], event["verb"]))
    assert used == granted, (used, granted)
    report(f"{len(used)} permissions granted, each of them used, none else asked for")


def test_check_says_that_all_is_in_order(mesh, report):
    said = mesh.posthouse("check", "--url", "http://echo.shop/").stdout
    assert "everything is in order" in said.splitlines()[-1], said
    answer = json.loads(mesh.posthouse("check", "--output", "json", "--url", "http://echo.shop/").stdout)
    assert answer["verdict"] == "ok", answer
    looked_at = {check["id"] for check in answer["checks"]}
    assert looked_at == {"api", "clock", "namespace", "permissions", "daemonset", "ports", "version", "node", "links", "probe"}
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
    kinds = kube.kubectl("api-resources", "--verbs=list", "-o", "name").split()
    kube.helm("uninstall", "posthouse", "-n", mesh.NAMESPACE, "--wait", "--timeout=90s")
    try:
        label = "app.kubernetes.io/instance=posthouse"
        # What is on its way out (pods with their grace period) may take that long.
        left = kube.until(
            "nothing of the release is left",
            lambda: kube.kubectl("get", ",".join(kinds), "-A", "-l", label, "-o", "name", "--ignore-not-found").strip() == "",
            seconds=90, every=1,
        )
        assert left
        assert kube.kubectl("get", "all,sa,secrets,cm", "-n", mesh.NAMESPACE, "-o", "name").split() in (
            ["serviceaccount/default", "configmap/kube-root-ca.crt"], ["configmap/kube-root-ca.crt", "serviceaccount/default"],
        )
        done = mesh.posthouse("check", "--pre")
        assert "in order" in done.stdout.splitlines()[-1], done.stdout
    finally:
        mesh.install()
        kube.rolled_out("ds/posthouse", mesh.NAMESPACE)
    report(f"no object of {len(kinds)} kinds is left; installed again")

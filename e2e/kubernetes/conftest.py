"""The cluster with Posthouse and the workloads on it, made once; and the numbers that the tests found, at the end."""

import json
import os
import time
from pathlib import Path

import pytest

import kube
import mesh as posthouse

REPORT = []


@pytest.fixture(scope="session")
def mesh():
    """Posthouse installed by Helm, Ready on every node, with the workloads of manifests/ running."""
    began = time.monotonic()
    posthouse.install()
    REPORT.append(("install", f"helm install --wait: Ready on {len(posthouse.proxies())} nodes after {time.monotonic() - began:.1f} s"))
    manifests = (posthouse.HERE / "manifests/workloads.yaml").read_text()
    kube.apply(posthouse.with_environment(manifests))
    for workload in ("deploy/echo", "deploy/abrupt", "deploy/greeter", "sts/db", "ds/client"):
        kube.rolled_out(workload, posthouse.SHOP)
    return posthouse


@pytest.fixture
def report(request):
    """report("words with numbers"): stands in the summary and in target/e2e/report.json."""
    return lambda words: REPORT.append((request.node.name.removeprefix("test_"), words))


def pytest_collection_modifyitems(items):
    """Tests that need the nodes' insides are for the cluster that is ours."""
    for item in items:
        if item.get_closest_marker("own") and not posthouse.OWN:
            item.add_marker(pytest.mark.skip(reason="stops parts of the cluster: only on the one of e2e/cluster"))


def pytest_configure(config):
    config.addinivalue_line("markers", "own: stops parts of the cluster, so it needs the one of e2e/cluster")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """What the proxies and the cluster say when a test fails, since both are gone afterwards."""
    outcome = yield
    result = outcome.get_result()
    if result.when == "call" and result.failed and "mesh" in item.fixturenames:
        words = []
        for args in (
            ["get", "nodes,pods", "-A", "-o", "wide"],
            ["logs", "-n", posthouse.NAMESPACE, "ds/posthouse", "--all-pods", "--prefix", "--tail=40"],
            ["logs", "-n", posthouse.NAMESPACE, "deploy/posthouse-controller", "--all-pods", "--prefix", "--tail=30"],
            ["get", "certificatesigningrequests", "--sort-by=.metadata.creationTimestamp"],
        ):
            done = kube.run(kube.KUBECTL, *args, check=False, timeout=60)
            words.append(f"$ kubectl {' '.join(args)}\n{done.stdout[-12000:]}{done.stderr[-2000:]}")
        result.sections.append(("the cluster", "\n".join(words)))


def pytest_terminal_summary(terminalreporter):
    if not REPORT:
        return
    terminalreporter.section("measured")
    for name, words in REPORT:
        terminalreporter.write_line(f"{name}: {words}")
    folder = Path(os.environ.get("CARGO_TARGET_DIR", posthouse.ROOT / "target"), "e2e")
    folder.mkdir(parents=True, exist_ok=True)
    lines = [{"test": name, "measured": words} for name, words in REPORT]
    (folder / "report.json").write_text(json.dumps(lines, indent=1) + "\n")


def pytest_unconfigure(config):
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    counts = {name: len(reporter.stats.get(name, [])) for name in ("passed", "failed", "error")}
    reporter.write_line(f"{counts['passed']} passed, {counts['failed'] + counts['error']} failed")

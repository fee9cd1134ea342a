"""The demo's cluster for a test file, and the closing line."""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

BIN = Path(os.environ.get("POSTHOUSE_BIN", Path(__file__).parents[2] / "target/debug"))
START_SECONDS = 60


class Demo:
    """What `posthouse-demo --pids` says of the running cluster."""

    def __init__(self, description):
        self.proxies = {proxy["node"]: proxy for proxy in description["proxies"]}
        self.pods = description["pods"]
        self.logs = Path(description["logs"])
        self.source = Path(description["source"])

    def outbound(self, node="node-a"):
        """(host, port) of a node's outbound listener."""
        host, port = self.proxies[node]["outbound"].split(":")
        return host, int(port)

    def proxy_url(self, node="node-a"):
        return "http://" + self.proxies[node]["outbound"]

    def of(self, service):
        return [pod for pod in self.pods if pod["service"] == service]

    def counters(self, pod):
        """An echo pod's counters, asked past the proxies."""
        with urllib.request.urlopen(f"http://{pod['address']}/counters", timeout=10) as answer:
            return json.load(answer)

    def rss(self):
        """Resident memory of each proxy in bytes."""
        sizes = {}
        for node, proxy in self.proxies.items():
            status = Path(f"/proc/{proxy['pid']}/status").read_text()
            line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
            sizes[node] = int(line.split()[1]) * 1024
        return sizes


def until(what, condition, seconds=30):
    """Waits for a condition and returns its value; `what` is told when it does not come."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@contextlib.contextmanager
def running_demo():
    with tempfile.TemporaryDirectory(prefix="posthouse-e2e-") as folder:
        description, log = Path(folder, "pids.json"), Path(folder, "demo.log")
        with log.open("w") as output:
            # The demo's own variable would end the cluster in the middle of a test.
            env = {name: value for name, value in os.environ.items() if name != "DEMO_SECONDS"}
            process = subprocess.Popen(
                [BIN / "posthouse-demo", "--idle", "--pids", description],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env,
            )
        try:
            until(
                "the demo's cluster is ready",
                lambda: description.exists() or process.poll() is not None,
                START_SECONDS,
            )
            if not description.exists():
                pytest.fail(f"the demo did not start:\n{log.read_text()}", pytrace=False)
            demo = Demo(json.loads(description.read_text()))
            yield demo
            for node, proxy in demo.proxies.items():
                alive = Path(f"/proc/{proxy['pid']}").exists()
                words = demo.logs / f"posthouse-{node}.log"
                assert alive, f"the proxy of {node} ended:\n{words.read_text()[-2000:]}"
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture(scope="module")
def demo():
    """Fresh for each file, so that a file may kill what it likes."""
    with running_demo() as running:
        yield running


def pytest_unconfigure(config):
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return
    counts = {name: len(reporter.stats.get(name, [])) for name in ("passed", "failed", "error")}
    reporter.write_line(f"{counts['passed']} passed, {counts['failed'] + counts['error']} failed")

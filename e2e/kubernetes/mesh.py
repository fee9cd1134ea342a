"""Posthouse on the cluster and the workloads that use it, as the tests see them."""

import collections
import contextlib
import http.client
import json
import os
import re
import statistics
from pathlib import Path

import kube

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CHART = ROOT / "charts/posthouse"
NAMESPACE = "posthouse"
SHOP = "shop"
IMAGE = ("posthouse.invalid/posthouse", "dev")
OWN = os.environ.get("E2E_CLUSTER", "own") == "own"

# What the load clients send on each node, in requests a second.
RATE = 200


def install(*args, wait=True):
    """helm upgrade --install with the images that were loaded; returns what Helm said."""
    return kube.helm(
        "upgrade", "--install", "posthouse", CHART, "-n", NAMESPACE, "--create-namespace",
        "--set", f"image.repository={IMAGE[0]},image.tag={IMAGE[1]},image.pullPolicy=Never",
        *(["--wait", "--timeout=120s"] if wait else []), *args,
    ).stdout


def proxies():
    """Node -> name of its Posthouse pod."""
    return kube.on_nodes(NAMESPACE, "app.kubernetes.io/name=posthouse,app.kubernetes.io/component=proxy")


def posthouse(*args, check=True, stdin=None):
    """Runs the program that is installed, on this machine."""
    binary = Path(os.environ["E2E_IMAGES"], "bin/posthouse")
    return kube.run(binary, *args, check=check, stdin=stdin)


def uninstall():
    """helm uninstall; returns when nothing of ours runs any more."""
    kube.helm("uninstall", "posthouse", "-n", NAMESPACE, "--wait", "--timeout=90s")
    kube.until(
        "no pod of Posthouse is left",
        lambda: not kube.pods(NAMESPACE, "app.kubernetes.io/name=posthouse", phase=None),
        seconds=90, every=0.5,
    )


def rolled_out():
    """Waits for the proxies of all nodes and for the controller."""
    kube.rolled_out("ds/posthouse", NAMESPACE)
    kube.rolled_out("deploy/posthouse-controller", NAMESPACE)


def series(text, name, **labels):
    """The sum of a metric's series that have these labels."""
    total = 0.0
    for line in text.splitlines():
        found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if found and labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', found[1] or "")).items():
            total += float(found[2])
    return total


class Admin:
    """The admin API of one node's proxy, on a kept-alive connection through a port-forward."""

    def __init__(self, port):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)

    def text(self, path):
        try:
            answer = self.ask(path)
        except (http.client.HTTPException, ConnectionError):
            # The server ends connections that are some minutes old; the next request opens another.
            self.connection.close()
            answer = self.ask(path)
        text = answer.read().decode()
        assert answer.status == 200, f"{path}: {answer.status} {text}"
        return text

    def ask(self, path):
        self.connection.request("GET", path)
        return self.connection.getresponse()

    def get(self, path):
        return json.loads(self.text(path))

    def metric(self, name, **labels):
        """The sum of a metric's series that have these labels."""
        return series(self.text("/metrics"), name, **labels)


@contextlib.contextmanager
def admins():
    """Node -> Admin."""
    with contextlib.ExitStack() as stack:
        yield {
            node: Admin(stack.enter_context(kube.forwarded(NAMESPACE, pod, 9990))) for node, pod in proxies().items()
        }


def client(node):
    """The client pod on a node; `ask` runs requests in it."""
    return kube.on_nodes(SHOP, "app=client")[node]


def ask(pod, *args, namespace=SHOP, check=True, timeout=60):
    """`demo-app get ...` in a pod: one answer as the app prints it, or several."""
    done = kube.run(
        kube.KUBECTL, "exec", "-n", namespace, pod, "--", "/app", "get", *args, check=False, timeout=timeout
    )
    assert not check or done.returncode == 0, f"get {args} in {pod}: {done.stdout}{done.stderr}"
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert answers, f"get {args} in {pod} printed nothing: {done.stderr}"
    return answers if "--times" in args else answers[0]


Window = collections.namedtuple("Window", "ok failed seconds failures pods slowest_ms")


class Load:
    """Load clients, one on each node, that run until `stop`; what they saw is read from their logs."""

    def __init__(self, name, *args, rate):
        self.name, self.rate = name, rate
        manifest = (HERE / "manifests/load.yaml").read_text()
        # As many as five seconds need: when the machine stands still for a moment, that is told as latency.
        pace = ("--seconds", 0, "--rate", rate, "--max-connections", 5 * rate)
        words = ", ".join(json.dumps(str(arg)) for arg in ("load", *pace, *args))
        kube.apply(with_environment(manifest).replace("NAME", name).replace("ARGS", words), SHOP)
        kube.rolled_out(f"ds/{name}", SHOP)
        self.pods = kube.on_nodes(SHOP, f"load={name}")
        assert set(self.pods) == set(proxies()), f"load {name} runs on {set(self.pods)}"
        kube.until(
            f"load {name} runs everywhere",
            lambda: all(any(line.get("ok") for line in self.lines(node)) for node in self.pods),
        )

    def lines(self, node):
        """What the client of a node has said so far."""
        done = kube.run(kube.KUBECTL, "logs", "-n", SHOP, self.pods[node], check=False)
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")] if done.returncode == 0 else []

    def window(self, begin, end, nodes=None):
        """What was sent between two times (Unix seconds), by the clients on `nodes` or on all. Every one of them must have told of
        all that time, and have sent what it should."""
        ok = failed = 0
        slowest = 0.0
        seconds, failures, by_pod = collections.Counter(), [], collections.Counter()
        for node in nodes or self.pods:
            lines = kube.until(
                f"load {self.name} on {node} tells of the time up to {end}",
                lambda node=node: (lines := self.lines(node))
                and any(line.get("time", 0) >= end and "ok" in line for line in lines) and lines,
                seconds=60, every=0.5,
            )
            sent = 0
            for line in lines:
                if not begin <= line.get("time", 0) < end:
                    continue
                if "failure" in line:
                    failures.append((line["time"], node, line["failure"]))
                elif "ok" in line:
                    ok, failed, sent = ok + line["ok"], failed + line["failed"], sent + line["ok"] + line["failed"]
                    seconds[int(line["time"])] += line["ok"] + line["failed"]
                    by_pod.update(line.get("by_pod", {}))
                    slowest = max(slowest, line.get("max_ms") or 0.0)
            # The first and the last second are reported when they begin within the window.
            assert sent >= 0.95 * self.rate * (end - begin - 2), f"{self.name} on {node} sent {sent} in {end - begin:.0f} s"
        return Window(ok, failed, seconds, sorted(failures), by_pod, slowest)

    def stop(self):
        kube.kubectl("delete", "ds", "-n", SHOP, self.name, "--wait=true", "--grace-period=1")


@contextlib.contextmanager
def load(name, *args, rate=RATE):
    running = Load(name, *args, rate=rate)
    try:
        yield running
    finally:
        running.stop()


def environment():
    """`posthouse env` as the chart's users paste it into a container."""
    return posthouse("env").stdout


def with_environment(manifest):
    """Puts the environment block where a manifest has `#ENV`, at that line's indentation."""
    lines = []
    for line in manifest.splitlines():
        if line.strip() != "#ENV":
            lines.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip())]
        lines += [indent + part for part in environment().splitlines()]
    return "\n".join(lines) + "\n"


def rate_of(window):
    """Requests a second over the whole cluster: the median of the seconds."""
    return statistics.median_low(window.seconds.values())

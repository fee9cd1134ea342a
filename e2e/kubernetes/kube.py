"""kubectl and Helm as functions, and waiting. Nothing here knows of Posthouse."""

import contextlib
import http.client
import json
import os
import subprocess
import threading
import time

KUBECTL = os.environ.get("KUBECTL", "kubectl")
HELM = os.environ.get("HELM", "helm")


def run(*args, stdin=None, check=True, timeout=180):
    """Runs a command and returns what it did; a failure shows what it said."""
    done = subprocess.run([str(arg) for arg in args], input=stdin, capture_output=True, text=True, timeout=timeout)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, args))}\nexit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def kubectl(*args, **more):
    return run(KUBECTL, *args, **more).stdout


def get(*args):
    """Objects as kubectl has them."""
    return json.loads(kubectl("get", *args, "-o", "json"))


def apply(manifests, namespace=None):
    return kubectl("apply", *(["-n", namespace] if namespace else []), "-f", "-", stdin=manifests)


def helm(*args, **more):
    return run(HELM, *args, **more)


def until(what, condition, seconds=60, every=0.1):
    """Waits for a condition and returns its value; `what` is told when it does not come."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(every)


def rolled_out(kind, namespace, seconds=120):
    kubectl("rollout", "status", kind, "-n", namespace, f"--timeout={seconds}s", timeout=seconds + 10)


def pods(namespace, selector, phase="Running"):
    """Pods that are not on their way out, by name."""
    items = get("pods", "-n", namespace, "-l", selector)["items"]
    return {
        pod["metadata"]["name"]: pod
        for pod in items
        if "deletionTimestamp" not in pod["metadata"] and (phase is None or pod["status"].get("phase") == phase)
    }


def on_nodes(namespace, selector):
    """Node -> name of the pod there."""
    return {pod["spec"]["nodeName"]: name for name, pod in pods(namespace, selector).items()}


class Api:
    """The API by a kept-alive connection through `kubectl proxy`: for writes whose time matters."""

    def __init__(self, host, port):
        self.connection = http.client.HTTPConnection(host, port, timeout=30)

    def ask(self, method, path, body=None, content="application/json"):
        headers = {"Content-Type": content} if body is not None else {}
        self.connection.request(method, path, json.dumps(body) if body is not None else None, headers)
        answer = self.connection.getresponse()
        text = answer.read().decode()
        assert answer.status < 300, f"{method} {path}: {answer.status} {text}"
        return json.loads(text)

    def patch(self, path, body):
        return self.ask("PATCH", path, body, "application/merge-patch+json")


@contextlib.contextmanager
def api():
    process = subprocess.Popen([KUBECTL, "proxy", "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()     # Starting to serve on 127.0.0.1:34567
        host, port = line.rsplit(" ", 1)[1].strip().rsplit(":", 1)
        yield Api(host, int(port))
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def forwarded(namespace, pod, port):
    """A local port that leads to `port` of a pod."""
    process = subprocess.Popen(
        [KUBECTL, "port-forward", "-n", namespace, f"pod/{pod}", f":{port}", "--address=127.0.0.1"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )
    try:
        line = process.stdout.readline()     # Forwarding from 127.0.0.1:34567 -> 9990
        assert "->" in line, f"no port-forward to {pod}:{port}"
        # kubectl says a line for each connection, which somebody must read.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield int(line.split(" -> ")[0].rsplit(":", 1)[1])
    finally:
        process.terminate()
        process.wait(10)

"""The API server away under load: killed for a minute, with pods that die meanwhile and a proxy that is restarted; and stopped in
good order, which empties the endpoints of its own Service."""

import json
import os
import signal
import threading
import time

import pytest

import kube
import nodes

pytestmark = pytest.mark.own
AWAY = 60


def test_a_minute_without_the_api_server(mesh, report):
    """Zero failed idempotent requests, though pods die; the age of the view rises; it is right within 2 s after the return; and
    a proxy that is restarted meanwhile serves by its snapshot, with the certificate that it had."""
    with mesh.load("away", "--url", "http://abrupt.shop/") as load, kube.api() as api:
        time.sleep(12)    # each proxy writes its snapshot at most every 10 s
        begin = time.time()
        # Killed, so that the endpoints of its own Service stay: what is measured is our way back, not kube-proxy's.
        nodes.stop_api("KILL")
        try:
            killed = 0
            for number in (1, 2, 3, 1, 2):
                time.sleep(3)
                # The one that was killed there before is back, so that two of three pods are at most away.
                kube.until(f"node-{number} has a pod", lambda number=number: any_of("posthouse-demo-app", b"hello", number), seconds=30)
                killed += kill_one("posthouse-demo-app", b"hello", number)
            ages = {number: age(number) for number in (1, 2, 3)}
            assert all(value > 15 for value in ages.values()), ages
            # Once the pods are back (the kubelet waits 10 s before a second start): with two of three pods away and the third's
            # proxy killed, what is under way to that one has nowhere else to go.
            time.sleep(max(0, begin + 40 - time.time()))
            before = identity(3)["certificate"]
            restarted = time.time()
            assert kill_one("posthouse", b"run", 3) == 1
            served = serving_again(3)
            kept = identity(3)["certificate"]
            time.sleep(max(0, begin + AWAY - time.time()))
            ages = {number: age(number) for number in (1, 2, 3)}
        finally:
            nodes.start_api()
        back = time.time()
        write_then_see(api, back, report)
        end = time.time() + 3
        time.sleep(3)
        # The restarted proxy's own node is judged up to its restart: nobody listened there for a moment.
        others = load.window(begin, end, nodes={"node-1", "node-2"})
        third = load.window(begin, restarted - 1, nodes={"node-3"})
        gap = load.window(restarted - 1, end, nodes={"node-3"})
        report(
            f"API away for {back - begin:.0f} s, {killed} pods killed: {others.ok + third.ok:,} GETs, "
            f"{others.failed + third.failed} failed; ages at its end {', '.join(f'{a:.0f} s' for a in ages.values())}"
        )
        report(
            f"a proxy killed meanwhile served by its snapshot and its kept certificate {served - restarted:.1f} s later; {gap.failed} "
            "requests of its own node's clients failed in between"
        )
        assert killed >= 4
        assert others.failed + third.failed == 0, (others.failures + third.failures)[:10]
        assert all(value > AWAY - 15 for number, value in ages.items()), ages
        assert kept["serial"] == before["serial"] and kept["source"].startswith("cache "), (before, kept)
        late = [failure for failure in gap.failures if failure[0] > served + 1]
        assert not late, late[:5]


def test_the_proxies_need_no_kube_proxy_when_they_know_the_servers_address(mesh, report):
    """With kubernetesApi.host. Stopped in good order, the API server removes itself from the Service `kubernetes`, and kube-proxy takes up to
    half a minute to know it again."""
    mesh.install("--set", "kubernetesApi.host=10.77.0.1")
    mesh.rolled_out()
    try:
        with kube.api() as api:
            nodes.stop_api()
            time.sleep(20)
            nodes.start_api()
            write_then_see(api, time.time(), report)
    finally:
        mesh.install()
        mesh.rolled_out()


def age(number):
    """posthouse_directory_age_seconds, the oldest of all watches."""
    lines = [line for line in nodes.metrics(number).splitlines() if line.startswith("posthouse_directory_age_seconds{")]
    assert lines, f"node-{number} shows no age"
    return max(float(line.rsplit(" ", 1)[1]) for line in lines)


def kill_one(name, word, number):
    """Kills one process of a node's containers; the kubelet starts it again without the API."""
    pid = any_of(name, word, number)
    if pid is None:
        return 0
    os.kill(pid, signal.SIGKILL)
    return 1


def any_of(name, word, number):
    """A process of a node's containers with this word in its command line."""
    for pid in nodes.processes(number, {"posthouse-demo-app": "app", "posthouse": "posthouse"}[name]):
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if word in file.read().split(b"\0"):
                return pid
    return None


def identity(number):
    """What a node's proxy says of its certificate; asked on the node, since a port-forward needs the API."""
    answer = nodes.run_on(number, "curl", "-s", "-m", "5", "http://127.0.0.1:9990/identity").stdout
    return json.loads(answer)


def serving_again(number):
    """The time from which a node's proxy answers for the whole mesh again."""
    def answers():
        code, status, _ = nodes.curl_on_node(number, "-x", f"http://{nodes.address(number)}:4140", "http://abrupt.shop/")
        return code == 0 and status == 200

    kube.until(f"node-{number}'s proxy serves again", answers, seconds=30, every=0.1)
    return time.time()


def write_then_see(api, back, report):
    """What is written just after the return is in every proxy's view within 2 s of the return, or of the answer to the write."""
    path = "/api/v1/namespaces/shop/services"
    api.ask("POST", path, {"metadata": {"name": "returned"}, "spec": {"ports": [{"port": 80}]}})
    back = max(back, time.time())
    seen = {}

    def look(number):
        while time.time() < back + 40:
            _, status, words = nodes.curl_on_node(
                number, "-x", f"http://{nodes.address(number)}:4140", "http://returned.shop/"
            )
            if status == 503 and "shop/returned" in words:
                seen[number] = time.time() - back
                return
            time.sleep(0.02)

    lookers = [threading.Thread(target=look, args=(number,)) for number in (1, 2, 3)]
    for looker in lookers:
        looker.start()
    for looker in lookers:
        looker.join()
    api.ask("DELETE", f"{path}/returned")
    report("view right after the API's return: " + ", ".join(f"node-{n} {s:.2f} s" for n, s in sorted(seen.items())))
    assert set(seen) == {1, 2, 3} and all(delay < 2 for delay in seen.values()), seen

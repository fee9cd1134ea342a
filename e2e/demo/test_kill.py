"""A pod dies with requests in flight: those that may be repeated are, and nobody hears of it."""

import os
import signal
import threading

from conftest import until
from wire import Connection

REQUESTS = 200
# Long enough for all of them to be under way at once, also on a machine that stands still for a moment.
DELAY_MS = 10_000


def test_two_hundred_requests_survive_the_death_of_a_pod(demo):
    pods = demo.of("echo")
    answers = [None] * REQUESTS

    def ask(at):
        node = f"node-{'abc'[at % 3]}"
        try:
            with Connection(demo.outbound(node), source=demo.proxies[node]["client_ip"]) as connection:
                status, body = connection.get(f"http://echo.demo/delay/{DELAY_MS}", "echo.demo")
                answers[at] = status if status == 200 else (status, body)
        except Exception as error:
            answers[at] = repr(error)

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(REQUESTS)]
    for thread in threads:
        thread.start()
    in_flight = lambda: [demo.counters(pod)["in_flight"] for pod in pods]
    until("all requests wait at the pods", lambda: sum(in_flight()) == REQUESTS, DELAY_MS / 1000)
    victim = max(range(len(pods)), key=in_flight().__getitem__)
    assert in_flight()[victim] > REQUESTS / 10, "the dying pod has its share of them"
    os.kill(pods[victim]["pid"], signal.SIGKILL)
    for thread in threads:
        thread.join()
    failed = [answer for answer in answers if answer != 200]
    assert not failed, f"{len(failed)} of {REQUESTS} failed, the first: {failed[:3]}"


def test_after_that_the_dead_pod_is_not_noticed(demo):
    """Its slice still lists it: the API has not heard yet, as in a real cluster."""
    for node in demo.proxies:
        for _ in range(30):
            with Connection(demo.outbound(node)) as connection:
                assert connection.get("http://echo.demo/", "echo.demo")[0] == 200

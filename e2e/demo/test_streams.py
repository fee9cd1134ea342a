"""A gigabyte each way in constant memory, and back-pressure: who stops reading makes the other side stop writing."""

import json
import select
import socket
import threading
import time

import pytest

from conftest import until
from wire import Connection

GIB = 1 << 30
MAX_GROWTH = 32 << 20
# What sockets, windows and buffers of four hops may hold together; a proxy that reads on would hold the whole GiB.
MAX_UNDERWAY = 128 << 20
BLOCK = bytes(1 << 18)


class Memory:
    """The highest resident memory of each proxy while a block runs, against the time before it."""

    def __init__(self, demo):
        self.demo = demo
        self.done = threading.Event()

    def __enter__(self):
        self.before = self.demo.rss()
        self.highest = dict(self.before)
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.done.wait(0.05):
            for node, size in self.demo.rss().items():
                self.highest[node] = max(self.highest[node], size)

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()

    def growth(self):
        return {node: self.highest[node] - self.before[node] for node in self.before}


def remote_pod(demo):
    """The echo pod of node-b: from node-a it is reached only over a link, so two proxies carry every byte."""
    return next(pod for pod in demo.of("echo") if pod["node"] == "node-b")


def open_to_echo(demo, form):
    """A connection to node-a's proxy, what stands before a path in its requests' target, and the host."""
    authority = remote_pod(demo)["address"]
    connection = Connection(demo.outbound("node-a"), timeout=120)
    if form == "tunnel":
        return connection.tunnel(authority), "", authority
    return connection, f"http://{authority}", authority


FORMS = ["absolute form", "tunnel"]


@pytest.mark.parametrize("form", FORMS)
def test_a_gigabyte_down(demo, form):
    made = demo.counters(remote_pod(demo))["bytes_made"]
    with Memory(demo) as memory:
        connection, prefix, host = open_to_echo(demo, form)
        with connection:
            connection.send_head("GET", f"{prefix}/bytes/{GIB}", host)
            status, fields = connection.read_head()
            assert (status, fields.get("content-length")) == (200, str(GIB))
            left = GIB
            while left:
                got = len(connection.reader.read1(1 << 20))
                assert got, f"the answer broke off {left} bytes before its end"
                left -= got
    assert demo.counters(remote_pod(demo))["bytes_made"] == made + GIB
    assert max(memory.growth().values()) < MAX_GROWTH, memory.growth()


@pytest.mark.parametrize("form", FORMS)
def test_a_gigabyte_up(demo, form):
    with Memory(demo) as memory:
        connection, prefix, host = open_to_echo(demo, form)
        with connection:
            connection.send_head("POST", f"{prefix}/sink", host, Content_Length=GIB)
            for _ in range(GIB // len(BLOCK)):
                connection.socket.sendall(BLOCK)
            status, fields = connection.read_head()
            answer = json.loads(connection.read_body(fields))
            assert (status, answer["bytes"], answer["node"]) == (200, GIB, "node-b")
    assert max(memory.growth().values()) < MAX_GROWTH, memory.growth()


def total(demo, counter):
    return sum(demo.counters(pod)[counter] for pod in demo.of("echo"))


def standing_still(read, seconds=1.0):
    """The value of `read` once it has not changed for a while."""
    last, since = read(), time.monotonic()

    def same():
        nonlocal last, since
        value = read()
        if value != last:
            last, since = value, time.monotonic()
        return time.monotonic() - since >= seconds

    until("the bytes stop", same)
    return last


@pytest.mark.parametrize("form", FORMS)
def test_a_reader_that_stops_makes_the_pod_stop(demo, form):
    with Memory(demo) as memory:
        before = total(demo, "bytes_made")
        connection, prefix, host = open_to_echo(demo, form)
        with connection:
            connection.send_head("GET", f"{prefix}/bytes/{10 * GIB}", host)
            assert connection.read_head()[0] == 200
            connection.reader.read(1 << 20)
            made = standing_still(lambda: total(demo, "bytes_made")) - before
    assert 1 << 20 <= made < MAX_UNDERWAY, f"{made} bytes were made for a reader that took 1 MiB"
    assert max(memory.growth().values()) < MAX_GROWTH, memory.growth()


@pytest.mark.parametrize("form", FORMS)
def test_a_pod_that_does_not_read_makes_the_client_stop(demo, form):
    with Memory(demo) as memory:
        connection, prefix, host = open_to_echo(demo, form)
        with connection:
            connection.send_head("POST", f"{prefix}/stall/600000", host, Content_Length=10 * GIB)
            connection.socket.setblocking(False)
            sent = 0
            # A second in which nothing more could be written: the pressure has reached the client.
            while select.select([], [connection.socket], [], 1.0)[1] and sent < 2 * MAX_UNDERWAY:
                try:
                    sent += connection.socket.send(BLOCK)
                except BlockingIOError:
                    pass
    assert sent < MAX_UNDERWAY, f"{sent} bytes were taken for a pod that reads none"
    assert max(memory.growth().values()) < MAX_GROWTH, memory.growth()


def test_a_client_that_leaves_ends_the_request_at_the_pod(demo):
    before = total(demo, "cancelled")
    # A stalled pod of another test may not have noticed yet that its client is gone.
    waiting = total(demo, "in_flight")
    with Connection(demo.outbound()) as connection:
        connection.send_head("GET", "http://echo.demo/delay/600000", "echo.demo")
        until("the request is at a pod", lambda: total(demo, "in_flight") == waiting + 1)
        connection.socket.shutdown(socket.SHUT_RDWR)
    until("the pod sees the client leave", lambda: total(demo, "cancelled") == before + 1)

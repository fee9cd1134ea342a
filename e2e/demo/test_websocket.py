"""WebSockets through the proxies: as an upgrade of an absolute-form request, and inside a tunnel."""

import pytest
from websockets.sync.client import connect

from wire import Connection

SIZES = [0, 1, 125, 126, 65_535, 65_536, 1_000_000]


@pytest.mark.parametrize("form", ["absolute form", "tunnel", "straight to a pod"])
def test_messages_come_back(demo, form):
    if form == "absolute form":
        connection = Connection(demo.outbound()).websocket("http://echo.demo/ws", "echo.demo")
    elif form == "tunnel":
        connection = Connection(demo.outbound()).tunnel("echo.demo:80").websocket("/ws", "echo.demo")
    else:
        host, port = demo.of("echo")[0]["address"].split(":")
        connection = Connection((host, int(port))).websocket("/ws", host)
    with connection:
        for size in SIZES:
            payload = bytes(at % 251 for at in range(size))
            connection.send_message(payload)
            assert connection.read_message() == (2, payload)
        connection.send_message(b"\x03\xe8", opcode=8)
        opcode, payload = connection.read_message()
        assert (opcode, payload[:2]) == (8, b"\x03\xe8"), "the close handshake is answered"
        assert connection.reader.read() == b"", "then the connection ends"


def test_a_library_that_knows_only_the_proxy_variable(demo, monkeypatch):
    monkeypatch.setenv("http_proxy", demo.proxy_url())
    with connect("ws://echo.demo/ws") as socket:
        for text in ("one", "two", "x" * 100_000):
            socket.send(text)
            assert socket.recv(timeout=20) == text


def test_a_refused_upgrade_is_a_plain_answer(demo):
    with Connection(demo.outbound()) as connection:
        connection.send_head("GET", "http://hello.demo/", "hello.demo", Connection="Upgrade", Upgrade="websocket",
                             Sec_WebSocket_Version="13", Sec_WebSocket_Key="AAAAAAAAAAAAAAAAAAAAAA==")
        status, fields = connection.read_head()
        assert status == 200
        assert connection.read_body(fields).startswith(b"hello from")

"""HTTP/1.1 and WebSocket by hand, for what no library lets a test do: stop reading, stop writing, choose the form of the
request's target, count what is in flight."""

import base64
import hashlib
import json
import os
import socket
import struct


class Connection:
    """One TCP connection with a buffered reader."""

    def __init__(self, address, source=None, timeout=60):
        self.socket = socket.create_connection(address, timeout, (source, 0) if source else None)
        self.reader = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.reader.close()
        self.socket.close()

    def send_head(self, method, target, host, **fields):
        lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        self.socket.sendall("\r\n".join(lines + ["", ""]).encode())

    def read_head(self):
        """The status and the fields, names in lower case."""
        line = self.reader.readline()
        assert line, "the connection was closed before an answer"
        status = int(line.split()[1])
        fields = {}
        while (line := self.reader.readline().strip()):
            name, _, value = line.decode().partition(":")
            fields[name.lower()] = value.strip()
        return status, fields

    def read_body(self, fields):
        if "content-length" in fields:
            return self.reader.read(int(fields["content-length"]))
        assert fields.get("transfer-encoding") == "chunked", fields
        body = b""
        while (size := int(self.reader.readline().split(b";")[0], 16)):
            body += self.reader.read(size)
            self.reader.readline()
        while self.reader.readline().strip():
            pass
        return body

    def get(self, target, host):
        """Status and body of a GET."""
        self.send_head("GET", target, host)
        status, fields = self.read_head()
        return status, self.read_body(fields)

    def tunnel(self, authority):
        """Opens a tunnel; the connection then ends at `authority`."""
        self.send_head("CONNECT", authority, authority)
        status, fields = self.read_head()
        assert status == 200, (status, fields)
        return self

    def websocket(self, target, host):
        """The opening handshake (RFC 6455 section 4)."""
        key = base64.b64encode(os.urandom(16)).decode()
        self.send_head(
            "GET", target, host, Connection="Upgrade", Upgrade="websocket",
            Sec_WebSocket_Version="13", Sec_WebSocket_Key=key,
        )
        status, fields = self.read_head()
        assert status == 101, (status, fields)
        guid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        wanted = base64.b64encode(hashlib.sha1((key + guid).encode()).digest()).decode()
        assert fields["sec-websocket-accept"] == wanted
        return self

    def send_message(self, payload, opcode=2):
        """One masked frame (RFC 6455 section 5.2)."""
        mask = os.urandom(4)
        length = len(payload)
        if length < 126:
            head = struct.pack("!BB", 0x80 | opcode, 0x80 | length)
        elif length < 65536:
            head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, length)
        else:
            head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, length)
        masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
        self.socket.sendall(head + mask + masked)

    def read_message(self):
        """(opcode, payload) of one unmasked frame."""
        first, length = self.reader.read(2)
        if length == 126:
            (length,) = struct.unpack("!H", self.reader.read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", self.reader.read(8))
        return first & 0x0F, self.reader.read(length)


def get_json(address, target, host):
    """One GET on a connection of its own."""
    with Connection(address) as connection:
        status, body = connection.get(target, host)
    assert status == 200, (status, body)
    return json.loads(body)

"""A client of the link port that is none of ours: Python's TLS and the h2 package, run by the tests in a node's network.

    link_client.py PLAN     PLAN and the answer, which is printed, are JSON:
    address                 [host, port]
    tls                     null (plain text), or certificate, key, roots (files or null), name (SNI or null), alpn (list)
    streams                 requests, each a list of [name, value]; sent one after the other

Prints outcome ("taken", "refused" or "silent"), why, certificate (the server's, DER in base64 or null) and answers (status, headers, body).
"Taken" is a link on which the server's SETTINGS have come: with TLS 1.3 a client's handshake is over before the server has looked
at its certificate.
"""

import base64
import json
import socket
import ssl
import sys

import h2.config
import h2.connection
import h2.events

TIMEOUT = 10


def secured(sock, tls):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The names are URIs, which this library does not compare; the issuer it checks.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED if tls["roots"] else ssl.CERT_NONE
    if tls["roots"]:
        context.load_verify_locations(cafile=tls["roots"])
    if tls["certificate"]:
        context.load_cert_chain(tls["certificate"], tls["key"])
    if tls["alpn"]:
        context.set_alpn_protocols(tls["alpn"])
    return context.wrap_socket(sock, server_hostname=tls["name"])


def talk(sock, streams, came):
    link = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    link.initiate_connection()
    sock.sendall(link.data_to_send())

    def events():
        data = sock.recv(65536)
        if not data:
            raise ConnectionError("closed by the server")
        found = link.receive_data(data)
        sock.sendall(link.data_to_send())
        return found

    while came["outcome"] != "taken":
        if any(isinstance(event, h2.events.RemoteSettingsChanged) for event in events()):
            came["outcome"] = "taken"
    for headers in streams:
        number = link.get_next_available_stream_id()
        link.send_headers(number, [tuple(pair) for pair in headers], end_stream=True)
        sock.sendall(link.data_to_send())
        answer = {"status": 0, "headers": {}, "body": ""}
        ended = False
        while not ended:
            for event in events():
                if getattr(event, "stream_id", None) != number:
                    continue
                if isinstance(event, h2.events.ResponseReceived):
                    answer["headers"] = dict(event.headers)
                    answer["status"] = int(answer["headers"].pop(":status"))
                elif isinstance(event, h2.events.DataReceived):
                    answer["body"] += event.data.decode()
                    link.acknowledge_received_data(event.flow_controlled_length, number)
                    sock.sendall(link.data_to_send())
                elif isinstance(event, (h2.events.StreamEnded, h2.events.StreamReset)):
                    ended = True
        came["answers"].append(answer)


def main():
    plan = json.loads(sys.argv[1])
    came = {"outcome": "refused", "why": "", "certificate": None, "answers": []}
    try:
        with socket.create_connection(tuple(plan["address"]), timeout=TIMEOUT) as plain:
            sock = plain
            if plan["tls"]:
                sock = secured(plain, plan["tls"])
                came["certificate"] = base64.b64encode(sock.getpeercert(binary_form=True)).decode()
            talk(sock, plan["streams"], came)
            # The connection stays whole until here.
            sock.close()
    except TimeoutError as error:
        came["outcome"], came["why"] = "silent", str(error)
    except (OSError, ssl.SSLError) as error:
        came["why"] = f"{type(error).__name__}: {error}"
    print(json.dumps(came))


main()

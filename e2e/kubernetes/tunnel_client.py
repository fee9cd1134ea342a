"""A tunnel that is held open: tunnel_client.py PROXY-HOST PROXY-PORT TARGET SECONDS, run by the tests in a node's network.

CONNECTs to a server that speaks first and echoes, and sends a line each tenth of a second. Prints `open` with the server's words once
lines come back, and at last `ended SECONDS` when the tunnel was closed, or `held SECONDS` when it was not within the time."""

import socket
import sys
import time


def main():
    host, port, target, seconds = sys.argv[1], int(sys.argv[2]), sys.argv[3], float(sys.argv[4])
    with socket.create_connection((host, port), timeout=10) as sock:
        sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        file = sock.makefile("rb")
        status = file.readline().decode().strip()
        while file.readline().strip():
            pass
        if " 200" not in status:
            print(f"refused {status}", flush=True)
            return
        began = time.monotonic()
        try:
            first = file.readline().decode().strip()
            if not first:
                raise ConnectionError("closed before a word")
            told = False
            while time.monotonic() < began + seconds:
                sock.sendall(b"ping\n")
                if file.readline() != b"ping\n":
                    raise ConnectionError("closed")
                if not told:
                    print(f"open {first}", flush=True)
                    told = True
                time.sleep(0.1)
        except TimeoutError:
            print(f"silent {time.monotonic() - began:.1f}", flush=True)
            return
        except OSError:
            print(f"ended {time.monotonic() - began:.1f}", flush=True)
            return
        print(f"held {seconds}", flush=True)


main()

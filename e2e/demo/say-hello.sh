#!/bin/sh
# Greets the demo's greeter from Python, with nothing but http_proxy to say that there is a proxy.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
venv=$(env -u http_proxy "$here/venv.sh")
exec "$venv/bin/python" "$here/say_hello.py" "$@"

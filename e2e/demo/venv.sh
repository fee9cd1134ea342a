#!/bin/sh
# Makes the Python environment of these tests, once for each state of requirements.txt, and prints its folder.
exec "$(dirname "$0")/../venv.sh" "$(cd "$(dirname "$0")" && pwd)/requirements.txt" demo

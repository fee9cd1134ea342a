"""One load run against one address: wrk for HTTP/1.1, h2load for HTTP/2; both on one CPU, one thread.

Errors are answers other than 2xx, connections that failed or ended, and time-outs.
"""

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from machine import LOAD_CPU

HERE = Path(__file__).resolve().parent
H1_CONNECTIONS = 64
H2_CONNECTIONS, H2_STREAMS = 8, 16


class LoadError(Exception):
    """The load generator itself failed or printed what we cannot read."""


@dataclass
class Result:
    requests: int
    seconds: float
    p99_us: float
    errors: int
    error_text: str
    load_cpu_seconds: float


def command(case, target, host, seconds, work):
    """The command line, as it also appears in the report."""
    url = f"http://{target}{case.path}"
    if case.h2:
        return ["h2load", "-t", "1", "-c", str(H2_CONNECTIONS), "-m", str(H2_STREAMS), "-D", str(seconds),
                "-H", f":authority: {host}", f"--log-file={work}/h2load.tsv", url]
    return ["wrk", "-t", "1", "-c", str(H1_CONNECTIONS), "-d", f"{seconds}s", "--timeout", "2s",
            "-H", f"Host: {host}", "-s", str(HERE / "wrk.lua"), url]


def run(case, running, seconds, work):
    """Runs the generator for `seconds`; LoadError if it fails, hangs or its output makes no sense."""
    program, *arguments = command(case, running.target, running.host, seconds, work)
    full = ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", str(LOAD_CPU), program, *arguments]
    log = Path(work) / "h2load.tsv"
    log.unlink(missing_ok=True)
    before = os.times()
    try:
        done = subprocess.run(full, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              timeout=seconds + 15, check=False)
    except subprocess.TimeoutExpired:
        raise LoadError(f"{program} did not end within {seconds + 15} s") from None
    after = os.times()
    output = done.stdout.decode(errors="replace")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    if done.returncode != 0:
        raise LoadError(f"{program} ended with status {done.returncode}: {output.strip()[-300:]}")
    return _h2load(output, log, case, seconds, cpu) if case.h2 else _wrk(output, case, cpu)


def _wrk(output, case, cpu):
    found = re.search(r"^JSON (\{.*\})$", output, re.M)
    if not found:
        raise LoadError(f"wrk printed no result: {output.strip()[-300:]}")
    raw = json.loads(found.group(1))
    kinds = ("status", "connect", "read", "write", "timeout")
    errors = sum(raw[kind] for kind in kinds)
    text = ", ".join(f"{raw[kind]} {kind}" for kind in kinds if raw[kind])
    # Bytes include the heads: fewer than the bodies alone means cut answers.
    if raw["requests"] and raw["bytes"] < raw["requests"] * case.size:
        errors, text = errors + 1, (text + ", " if text else "") + "short bodies"
    return Result(raw["requests"], raw["duration_us"] / 1e6, raw["p99_us"], errors, text, cpu)


def _h2load(output, log, case, seconds, cpu):
    totals = re.search(r"requests: (\d+) total, (\d+) started, (\d+) done, (\d+) succeeded, (\d+) failed, "
                       r"(\d+) errored, (\d+) timeout", output)
    codes = re.search(r"status codes: (\d+) 2xx, (\d+) 3xx, (\d+) 4xx, (\d+) 5xx", output)
    traffic = re.search(r"\) data$", output, re.M) and re.search(r"traffic:.*\((\d+)\) data", output)
    if not (totals and codes and traffic):
        raise LoadError(f"h2load printed no result: {output.strip()[-300:]}")
    _total, _started, done, succeeded, failed, errored, timeout = (int(n) for n in totals.groups())
    good, *bad = (int(n) for n in codes.groups())
    errors = failed + errored + timeout + sum(bad)
    text = f"{failed} failed, {errored} errored, {timeout} timeout, {sum(bad)} not 2xx" if errors else ""
    if int(traffic.group(1)) < succeeded * case.size:
        errors, text = errors + 1, (text + ", " if text else "") + "short bodies"
    # h2load prints no percentiles; its log has a line a request: start, status, microseconds to the end of the answer.
    times = sorted(int(line.split("\t")[2]) for line in log.read_text().splitlines() if line.count("\t") == 2)
    p99 = times[min(len(times) - 1, int(len(times) * 0.99))] if times else 0
    return Result(min(done, good), float(seconds), p99, errors, text, cpu)

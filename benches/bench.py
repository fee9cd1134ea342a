#!/usr/bin/env python3
"""The driver of `make bench`: rounds of short runs, the subjects interleaved, and a report at the end.

Settings come from the environment (see settings() below and docs/benchmarks.md). run.sh installs what is needed.
One subject runs at a time, started afresh for each measurement. All waits are bounded and all processes are ended by
their pid, whatever happens. Exit: 0 measured, 1 something needed could not run, 64 bad settings.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import load
import machine
import report
import subjects

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "target" / "bench"
# Without these two there is no verdict; any other subject that cannot run only loses its row.
NEEDED = ("posthouse", "haproxy")
# Two hops of one kind share the work about evenly; with less than this share, a hop was not on the way.
IDLE_SHARE = 0.2


@dataclass
class Settings:
    rounds: int
    seconds: int
    warmup: int
    cases: list
    subjects: list
    all_cases: bool
    profile: bool
    nice: int


class BadSettings(Exception):
    """One line that says which variable is wrong and why."""


def settings(env, known):
    """The environment as Settings; BadSettings names the variable."""

    def number(name, default, least, most=3600):
        text = env.get(name) or str(default)
        if not text.isdecimal() or not least <= int(text) <= most:
            raise BadSettings(f"{name}={text}: want a whole number from {least} to {most}")
        return int(text)

    def names(name, choices, groups=None):
        groups = groups or {}
        asked = [part for part in env.get(name, "").replace(",", " ").split() if part]
        # Each once, however often it was named.
        asked = list(dict.fromkeys(name for part in asked for name in groups.get(part, [part])))
        for part in asked:
            if part not in choices:
                raise BadSettings(f"{name}: no {part}; there are {', '.join([*groups, *choices])}")
        return asked or list(choices)

    return Settings(number("BENCH_ROUNDS", 5, 1), number("BENCH_SECONDS", 5, 1), number("BENCH_WARMUP", 1, 1),
                    names("BENCH_CASES", subjects.CASES, subjects.GROUPS), names("BENCH_SUBJECTS", known),
                    bool(env.get("BENCH_SUBJECTS")), env.get("BENCH_PROFILE", "") not in ("", "0"),
                    number("BENCH_NICE", 0, 0, 20))


def plan(chosen, known):
    """Each measurement as (round, case, subject): per round and case every subject once, its order rotated."""
    for number in range(chosen.rounds):
        for case in chosen.cases:
            order = [name for name in chosen.subjects if chosen.all_cases or case in known[name].cases]
            turn = number % len(order) if order else 0
            for name in order[turn:] + order[:turn]:
                # The ceiling needs no pairing: first and last round show whether the machine held still.
                if name != "direct" or number in (0, chosen.rounds - 1):
                    yield number, subjects.CASES[case], known[name]


def measure(subject, case, origin, chosen, work):
    """One warm-up and one measured run of a freshly started subject, as a dictionary for the report."""
    running = subject.start(case, work)
    try:
        load.run(case, running, chosen.warmup, work)
        quiet = machine.Quiet()
        cpu_before, origin_before = [hop.cpu_seconds() for hop in running.hops], origin.cpu_seconds()
        result = load.run(case, running, chosen.seconds, work)
        by_hop = [hop.cpu_seconds() - before for hop, before in zip(running.hops, cpu_before)]
        cpu, origin_cpu = sum(by_hop), origin.cpu_seconds() - origin_before
        foreign = quiet.foreign_percent(cpu if running.hops else None, origin_cpu + result.load_cpu_seconds)
        for hop in running.hops:
            hop.check()
        handshakes = running.handshakes()
        if result.requests == 0:
            raise load.LoadError(f"no request succeeded ({result.error_text or 'no error either'})")
        # A subject that found a way past one of its hops would look twice as fast.
        if by_hop and min(by_hop) < IDLE_SHARE * cpu:
            raise load.LoadError(f"a hop was idle (CPU seconds of the hops: {by_hop})")
        return {
            "requests": result.requests,
            "seconds": round(result.seconds, 3),
            "requests_per_second": round(result.requests / result.seconds, 1),
            "cpu_us_per_request": round(1e6 * cpu / result.requests, 2) if running.hops else None,
            "cpu_seconds_by_hop": [round(seconds, 2) for seconds in reversed(by_hop)],
            "proxy_cpu_busy_percent": round(100 * cpu / result.seconds, 1) if running.hops else None,
            "rss_bytes": sum(hop.rss_bytes() for hop in running.hops) if running.hops else None,
            "p99_us": result.p99_us,
            "errors": result.errors,
            "error_text": result.error_text,
            "foreign_cpu_percent": foreign,
            "handshakes": handshakes,
            "commands": [hop.command for hop in running.hops],
            "load_command": load.command(case, running.target, running.host, chosen.seconds, work),
        }
    finally:
        running.stop()


def profile(subject, case, chosen, work):
    """perf over both hops during a run of its own, so that sampling does not touch the numbers."""
    if not shutil.which("perf"):
        print("bench: BENCH_PROFILE is set but there is no perf; no profile", file=sys.stderr)
        return
    running = subject.start(case, work)
    try:
        pids = ",".join(str(pid) for hop in running.hops for pid in hop.pids())
        data, text = OUT / f"perf-{case.name}.data", OUT / f"perf-{case.name}.txt"
        perf = subprocess.Popen(["taskset", "-c", str(machine.LOAD_CPU), "perf", "record", "-q", "-F", "997", "-g",
                                 "-o", str(data), "-p", pids], stdin=subprocess.DEVNULL)
        try:
            load.run(case, running, chosen.seconds, work)
        finally:
            perf.send_signal(signal.SIGINT)
            perf.wait(20)
        with open(text, "wb") as out:
            subprocess.run(["perf", "report", "-i", str(data), "--stdio", "--no-children", "-g", "none",
                            "--percent-limit", "0.3"], stdout=out, stderr=subprocess.DEVNULL, check=False, timeout=120)
        print(f"bench: profile of {subject.name}, {case.name}: {text} (call graphs: perf report -i {data})",
              file=sys.stderr)
    finally:
        running.stop()


def run(chosen, known, work):
    """All measurements; returns {case: {subject: [one dictionary a round]}} and {subject: why it has no row}."""
    results, failed = {}, {}
    steps = list(plan(chosen, known))
    origin = subjects.start_origin(work)
    try:
        if any(case.mtls for _, case, _ in steps):
            for subject in {subject.name: subject for _, _, subject in steps}.values():
                _check_sender(subject, failed, work)
        for at, (number, case, subject) in enumerate(steps, 1):
            if subject.name in failed:
                continue
            try:
                one = measure(subject, case, origin, chosen, work)
            except (machine.StartError, load.LoadError, OSError) as error:
                if subject.name in NEEDED:
                    raise machine.StartError(f"{subject.name}, {case.name}: {error}") from error
                failed[subject.name] = f"{case.name}: {error}"
                print(f"bench: {subject.name} is left out: {failed[subject.name]}", file=sys.stderr)
                continue
            one["round"] = number + 1
            results.setdefault(case.name, {}).setdefault(subject.name, []).append(one)
            print(f"[{at}/{len(steps)}] round {number + 1} {case.name} {subject.name}: "
                  f"{one['requests_per_second']:.0f} requests/s"
                  + (f", ERRORS: {one['error_text']}" if one["errors"] else ""), file=sys.stderr, flush=True)
        if chosen.profile and "posthouse" in chosen.subjects:
            for name in chosen.cases:
                profile(known["posthouse"], subjects.CASES[name], chosen, work)
    finally:
        origin.stop()
        _keep(work)
    return results, failed


def _check_sender(subject, failed, work):
    try:
        subject.check_sender(work)
    except (machine.StartError, OSError) as error:
        if subject.name in NEEDED:
            raise machine.StartError(f"{subject.name}, hop A's check of hop B: {error}") from error
        failed[subject.name] = f"hop A's check of hop B: {error}"
        print(f"bench: {subject.name} is left out: {failed[subject.name]}", file=sys.stderr)


def _keep(work):
    # What was really run, for a reader who doubts a number: the filled-in configurations and the logs.
    kept = OUT / "work"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for path in Path(work).iterdir():
        if path.suffix in (".conf", ".cfg", ".yaml", ".log"):
            shutil.copy(path, kept)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    known = subjects.catalogue(os.environ.get("BENCH_POSTHOUSE") or str(ROOT / "target/release/posthouse"),
                               os.environ.get("BENCH_ENVOY") or "envoy")
    try:
        chosen = settings(os.environ, known)
    except BadSettings as error:
        print(f"bench: {error}", file=sys.stderr)
        return 64
    taken = subjects.occupied()
    if taken:
        print(f"bench: somebody listens on {', '.join(taken)} already", file=sys.stderr)
        return 1
    if (os.cpu_count() or 1) < 2:
        print("bench: needs two CPUs, one for the proxies and one for the load", file=sys.stderr)
        return 1
    OUT.mkdir(parents=True, exist_ok=True)
    if chosen.nice:
        try:
            machine.prefer(chosen.nice)
        except OSError as error:
            print(f"bench: BENCH_NICE={chosen.nice}: {error.strerror} (it needs root)", file=sys.stderr)
            return 1
    # The driver sleeps during a run, and on the load generator's CPU.
    os.sched_setaffinity(0, {machine.LOAD_CPU})
    about = machine.facts()
    about["versions"] = report.versions(known, chosen.subjects)
    with tempfile.TemporaryDirectory(prefix="posthouse-bench-") as work:
        try:
            results, failed = run(chosen, known, work)
        except machine.StartError as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            return 130
    summary = report.summarise(chosen, known, results, failed, about)
    (OUT / "results.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(report.text(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())

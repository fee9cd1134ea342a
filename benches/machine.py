"""Processes and the machine: start on a CPU, stop by pid, CPU time and memory from /proc, facts for the report.

Nothing here knows what a proxy is.
"""

import atexit
import os
import shutil
import subprocess
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
PROXY_CPU = 0
LOAD_CPU = 1


class StartError(Exception):
    """Something could not start; the text is one line and ends with the tail of its log."""


class Process:
    """One child pinned to a CPU. It gets SIGTERM from the kernel should the driver die without cleaning up."""

    def __init__(self, name, command, cpu, log_path, env=None):
        self.name, self.command, self.log_path = name, command, log_path
        # Settings of the caller's shell must not reach a subject.
        clean = {k: v for k, v in os.environ.items() if not k.startswith("POSTHOUSE_") and "proxy" not in k.lower()}
        clean.update(env or {})
        with open(log_path, "wb") as log:
            self.child = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "taskset", "-c", str(cpu), *command],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=clean, cwd="/")

    def check(self):
        """Raises StartError if the process has ended."""
        status = self.child.poll()
        if status is not None:
            raise StartError(f"{self.name} ended with status {status}: {self.tail()}")

    def tail(self):
        lines = [line.strip() for line in Path(self.log_path).read_text(errors="replace").splitlines() if line.strip()]
        return " | ".join(lines[-4:])[-600:] or "its log is empty"

    def pids(self):
        """The processes that do the work: its children (nginx' worker) if it has any, else itself."""
        pid = self.child.pid
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            children = []
        return [int(c) for c in children] or [pid]

    def cpu_seconds(self):
        return sum(_cpu_seconds(pid) for pid in {self.child.pid, *self.pids()})

    def rss_bytes(self):
        return sum(_rss_bytes(pid) for pid in self.pids())

    def stop(self):
        if self.child.poll() is not None:
            return
        self.child.terminate()
        try:
            self.child.wait(5)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


def _cpu_seconds(pid):
    # utime and stime of all threads, also ended ones. The kernel scales them to the scheduler's exact run time, so their
    # resolution is the 10 ms of the unit: 0.2 % of a round of 5 s.
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def _rss_bytes(pid):
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def cpu_busy_seconds(cpu):
    """(busy, stolen) seconds of one CPU since boot."""
    for line in Path("/proc/stat").read_text().splitlines():
        if line.startswith(f"cpu{cpu} "):
            user, nice, system, _idle, _wait, irq, soft, steal = (int(n) for n in line.split()[1:9])
            return (user + nice + system + irq + soft) / TICKS, steal / TICKS
    return 0.0, 0.0


class Quiet:
    """What others took of the two CPUs while we measured: a busy machine must not pass for a slow subject."""

    def __init__(self):
        self.at = time.monotonic()
        self.before = [cpu_busy_seconds(cpu) for cpu in (PROXY_CPU, LOAD_CPU)]

    def foreign_percent(self, ours_proxy_cpu, ours_load_cpu):
        """Percent of the worse of the two CPUs that went to other processes or was stolen by the hypervisor.

        None instead of the proxies' CPU seconds: that CPU was not used.
        """
        wall = time.monotonic() - self.at
        worst = 0.0
        for cpu, ours, before in zip((PROXY_CPU, LOAD_CPU), (ours_proxy_cpu, ours_load_cpu), self.before):
            if ours is None:
                continue
            busy, stolen = cpu_busy_seconds(cpu)
            worst = max(worst, (busy - before[0] - ours + stolen - before[1]) / wall)
        return round(100 * worst, 1)


def prefer(nice):
    """Gives this process and all it starts more priority, all subjects alike; OSError if it may not.

    For a machine that cannot be had quiet. Where the kernel groups processes by session, a nice value counts only within
    the group, so the group gets it as well; it gives it back when the driver ends.
    """
    group = Path("/proc/self/autogroup")
    if group.exists():
        before = group.read_text().split()[-1]
        group.write_text(str(-nice))
        atexit.register(group.write_text, before)
    os.nice(-nice)


def first_line(command):
    """The first line a version command prints, on whichever stream; empty if it cannot run."""
    if not shutil.which(command[0]):
        return ""
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    lines = [line.strip() for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
    return lines[0] if lines else ""


def facts():
    """What a reader needs to compare two runs."""
    model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), "unknown")
    memory = Path("/proc/meminfo").read_text().split()[1]
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": model,
        "cpus": os.cpu_count(),
        "memory_mib": int(memory) // 1024,
        "kernel": os.uname().release,
        # The pacing of bbr costs CPU on loopback too; the same for all, but not the same as another machine's cubic.
        "tcp_congestion_control": Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip(),
        "load_average_at_start": os.getloadavg()[0],
    }

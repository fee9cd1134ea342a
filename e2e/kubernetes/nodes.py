"""The insides of e2e/cluster: its control plane, and its nodes as machines that lose power or their network."""

import subprocess
from pathlib import Path

import kube

CLUSTER = Path(__file__).parents[1] / "cluster"
# As e2e/cluster/lib.sh has it.
NAMESPACES = "posthouse-e2e-"


def sh(script, check=True, timeout=120):
    """A line of shell with the tools of e2e/cluster/lib.sh."""
    return kube.run("bash", "-c", f". {CLUSTER}/lib.sh; {script}", check=check, timeout=timeout).stdout


def stop_api(signal="TERM"):
    sh(f"stop kube-apiserver {signal}")


def start_api():
    sh(f"{CLUSTER}/control-plane.sh kube-apiserver")


def power_off(number):
    sh(f"stop node-{number}.init KILL")


def power_on(number):
    sh(f"{CLUSTER}/node-up.sh {number}")
    ready(number)


def ready(number, seconds=90):
    kube.kubectl("wait", "--for=condition=Ready", f"node/node-{number}", f"--timeout={seconds}s", timeout=seconds + 10)


def address(number):
    return f"10.77.0.1{number}"


def processes(number, name):
    """Pids, as the host sees them, of a node's containers' processes of this name."""
    init = int(sh(f"nodepid {number}"))
    found = []
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0") if folder.name.isdigit() else [b""]
            if Path(command[0].decode()).name == name and below(int(folder.name), init):
                found.append(int(folder.name))
        except (OSError, ValueError):
            continue      # it has ended meanwhile
    return found


def below(pid, init):
    """Whether a process descends from `init`."""
    while pid > 1 and pid != init:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return pid == init


class Outsider:
    """A network namespace on the bridge that is no node and no pod: a machine of the node network. e2e/cluster/down.sh removes
    one that a broken run left behind, too."""

    name = NAMESPACES + "outsider"

    def __init__(self, address):
        self.address = address

    def __enter__(self):
        self.__exit__()
        sh(f"""set -e
        ip netns add {self.name}
        ip link add ${{LINK}}out type veth peer name eth0 netns {self.name}
        ip link set ${{LINK}}out master $BR up
        ip -n {self.name} addr add {self.address} dev eth0
        ip -n {self.name} link set eth0 up; ip -n {self.name} link set lo up
        ip -n {self.name} route replace 10.77.0.0/24 dev eth0""")
        return self

    def __exit__(self, *_):
        sh(f"ip netns del {self.name} 2>/dev/null; ip link del ${{LINK}}out 2>/dev/null", check=False)

    def curl(self, *args):
        return curl(["ip", "netns", "exec", self.name], *args)


def run_on(number, *args, check=True, timeout=60):
    """Runs a program of this machine in the node's own network."""
    return kube.run("ip", "netns", "exec", f"{NAMESPACES}{number}", *args, check=check, timeout=timeout)


def metrics(number):
    """The metrics of a node's proxy, without the API's help."""
    return run_on(number, "curl", "-sf", "-m", "5", f"http://{address(number)}:9991/metrics", check=False).stdout


def curl(prefix, *args):
    """curl's exit code, and the status of the answer (0: none)."""
    done = subprocess.run(
        [*prefix, "curl", "-s", "-m", "8", "-o", "/dev/null", "-w", "%{http_code} %header{proxy-status}", *args],
        capture_output=True, text=True, timeout=30,
    )
    status, _, words = done.stdout.partition(" ")
    return done.returncode, int(status or 0), words


def curl_on_node(number, *args):
    """curl in the node's own network."""
    return curl(["ip", "netns", "exec", f"{NAMESPACES}{number}"], *args)

"""Cases of the policies' matrix (crates/policy/tests/matrix) as real pods, Services and requests.

The matrix' namespaces are put behind a prefix, since its `shop` is not the one of the other tests, and its nodes are the cluster's.
A request is made inside of a tunnel to the Service (CONNECT), so that its host can be any, as in the matrix."""

import collections
import json

import yaml

import kube
import mesh
import nodes

FOLDER = mesh.ROOT / "crates/policy/tests/matrix"
PREFIX = "m-"
LABEL = "e2e.posthouse.io/matrix"
NODES = {"node-a": "node-1", "node-b": "node-2", "node-c": "node-3"}
# Where the asked pods stand: most who ask are on another node.
TARGET_NODE = "node-2"

# By file: chosen because API, pods and clients can play them; at least one of each file. The engine's own test plays them all.
CASES = {
    "identities": [
        "an account of the policy's namespace", "the same name in another namespace", "a pod named like the account",
        "a node without a pod", "nobody in particular", "a stranger", "a stranger of a denied node",
    ],
    "conditions": [
        "all three parts of a rule", "the operation does not", "by a path in normal form", "a path that is read in different ways",
        "a Deny that fails",
    ],
    "grpc": ["an allowed method", "another method of that service"],
    "methods": ["another of the list", "one that is not"],
    "operations": ["a name below a suffix", "the suffix itself", "another port"],
    "paths": [
        "with a query", "out of the prefix by encoded dots", "the denied prefix by many slashes",
        "the denied prefix by an encoded letter", "an encoded slash",
    ],
    "precedence": ["the first Allow", "Deny wins", "an Allow in dry run denies nothing", "a Deny in dry run denies nothing"],
    "targets": ["any Service of the namespace", "a pod is concerned by any of its Services", "other namespaces are free"],
    "tunnels": [
        "no HTTP field allows a tunnel", "another port does not", "an HTTP field denies a tunnel", "but not on another port",
    ],
    "broken": [
        "an expression that is none", "a path that is not absolute", "a path that is not in normal form",
        "other Services of the namespace are free",
    ],
}

Case = collections.namedtuple("Case", "file name source to request tunnel expect by would")


def space(name):
    return PREFIX + name


def key(text):
    """namespace/name with the prefix."""
    return text and space(text)


def read(file):
    return yaml.safe_load((FOLDER / f"{file}.yaml").read_text())


def cases():
    """The chosen ones."""
    found = []
    for file, names in CASES.items():
        setting = read(file)
        by_name = {case["name"]: case for case in setting["cases"]}
        for name in names:
            case = {**{part: setting.get(part) for part in ("from", "to", "request")}, **by_name[name]}
            source = case["from"]
            if source == "unidentified":
                source = {"unidentified": True, "node": "node-a"}
            found.append(Case(
                file, name, {**source, "node": NODES[source["node"]]}, case["to"], None if case.get("tunnel") else case["request"],
                case.get("tunnel", False), case["expect"], key(case.get("by")), key(case.get("would")),
            ))
    return found


def total():
    """How many cases the matrix has."""
    return sum(len(read(path.stem)["cases"]) for path in FOLDER.glob("*.yaml"))


def translated(policy):
    """A policy of the matrix as an object of this cluster."""
    spec = json.loads(json.dumps(policy["spec"]))
    for rule in spec.get("rules") or []:
        for source in rule.get("from") or []:
            if "namespaces" in source:
                source["namespaces"] = [space(name) for name in source["namespaces"]]
            if "nodes" in source:
                source["nodes"] = [NODES[name] for name in source["nodes"]]
            if "serviceAccounts" in source:
                source["serviceAccounts"] = [space(name) if "/" in name else name for name in source["serviceAccounts"]]
        if "when" in rule:
            for old, new in NODES.items():
                rule["when"] = rule["when"].replace(f"'{old}'", f"'{new}'")
    return {
        "apiVersion": "posthouse.io/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": policy["metadata"]["name"], "namespace": space(policy["metadata"]["namespace"]), "labels": {LABEL: ""}},
        "spec": spec,
    }


# Of those that are broken: the others have words and values that the API server itself refuses, by its schema.
ACCEPTED_BY_THE_API = {"expression", "path", "normal", "trial"}


def policies(file):
    """A file's policies, as far as the API has them."""
    found = [translated(policy) for policy in read(file)["policies"] if file != "broken" or policy["metadata"]["name"] in ACCEPTED_BY_THE_API]
    assert file != "broken" or len(found) == len(ACCEPTED_BY_THE_API), found
    return found


def namespaces():
    found = {space(policy["metadata"]["namespace"]) for file in CASES for policy in read(file)["policies"]}
    for case in cases():
        found.add(space(case.to["namespace"]))
        if "namespace" in case.source:
            found.add(space(case.source["namespace"]))
    return sorted(found)


def pod(name, namespace, account, node, containers, labels):
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {LABEL: "", **labels}},
        "spec": {
            # Set by us: the scheduler would add its time for each.
            "nodeName": node, "serviceAccountName": account, "terminationGracePeriodSeconds": 0, "enableServiceLinks": False,
            "automountServiceAccountToken": False, "containers": containers,
        },
    }


def container(name, args, port=None):
    made = {"name": name, "image": "posthouse.invalid/demo-app:dev", "imagePullPolicy": "Never", "args": args}
    if port:
        # Low ports, as the matrix has them.
        made["securityContext"] = {"runAsUser": 0}
        made["env"] = [{"name": "POD_NAME", "value": name}, {"name": "NODE_NAME", "value": TARGET_NODE}]
        made["readinessProbe"] = {"tcpSocket": {"port": port}, "periodSeconds": 1}
    return made


def stage():
    """Every object that the cases need, policies apart."""
    objects, accounts, sources = [], set(), {}
    ports, behind = collections.defaultdict(dict), collections.defaultdict(set)
    for case in cases():
        home, service, port = space(case.to["namespace"]), case.to["service"], case.to["port"]
        # A tunnel that is to work leads to a server that speaks first.
        kind = "tcp" if case.tunnel and case.expect == "allow" else "echo"
        known = ports[home, service].get(port)
        ports[home, service][port] = "tcp" if "tcp" in (kind, known) else "echo"
        behind[home, service] |= {service, *case.to.get("also", [])}
        if "pod" in case.source:
            source = case.source
            place = (space(source["namespace"]), source["pod"])
            value = (source["serviceAccount"], source["node"])
            assert sources.setdefault(place, value) == value, f"{place} is needed twice, in two ways"
            accounts.add((place[0], value[0]))
    services = collections.defaultdict(set)
    for (home, service), kinds in ports.items():
        containers = [container(f"{kind}-{port}", [kind, f"--listen=0.0.0.0:{port}"], port) for port, kind in sorted(kinds.items())]
        labels = {f"in-{name}": "yes" for name in behind[home, service]}
        objects.append(pod(f"to-{service}", home, "default", TARGET_NODE, containers, labels))
        for name in behind[home, service]:
            services[home, name] |= set(kinds)
    for (home, name), numbers in services.items():
        objects.append({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": home, "labels": {LABEL: ""}},
            "spec": {
                "selector": {f"in-{name}": "yes"},
                "ports": [{"name": f"p{number}", "port": number} for number in sorted(numbers)],
            },
        })
    for home, account in sorted(accounts):
        if account != "default":
            objects.append({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account, "namespace": home}})
    for (home, name), (account, node) in sources.items():
        # Without its own environment: the proxy is named with each request.
        objects.append(pod(name, home, account, node, [container("app", ["sleep"])], {}))
    return objects


def address(node):
    return nodes.address(node.rsplit("-", 1)[1])


def ask(case, http2=False):
    """What the asker gets: (status, words of Proxy-Status, grpc-status, echo of a tunnel)."""
    target = f"{case.to['service']}.{space(case.to['namespace'])}:{case.to['port']}"
    proxy = f"http://{address(case.source['node'])}:4140"
    if "pod" not in case.source:
        assert not case.tunnel, "curl opens no bare tunnel"
        args = ["-p", "-x", proxy, "--path-as-is", "-X", case.request["method"], "-H", f"Host: {case.request['host']}"]
        args += ["--http2-prior-knowledge"] if http2 else []
        _, status, words = nodes.curl_on_node(case.source["node"].rsplit("-", 1)[1], *args, f"http://{target}{case.request['path']}")
        return status, words, None, None
    args = ["--proxy", proxy, "--connect", target, "--timeout", "8s"]
    if case.tunnel:
        args += ["--line", "ping"]
    else:
        args += [f"http://{case.request['host']}{case.request['path']}", "--method", case.request["method"]]
        args += ["--http2"] if http2 else []
        args += ["-H", "content-type: application/grpc"] if case.file == "grpc" else []
    answer = mesh.ask(case.source["pod"], *args, namespace=space(case.source["namespace"]), check=False)
    headers = {**answer.get("headers", {}), **answer.get("trailers", {})}
    return answer.get("status", 0), headers.get("proxy-status", ""), headers.get("grpc-status"), answer.get("echo")


def verdict(case, came):
    """What is wrong with what came; None when it is as the matrix says."""
    status, words, grpc, echo = came
    if case.tunnel:
        if case.expect == "allow":
            return None if echo == "ping" else f"the tunnel does not work: {came}"
        # A tunnel is answered before its bytes can be looked into; then it is closed.
        return None if echo is None and status in (0, 403) else f"the tunnel works: {came}"
    if case.expect == "allow":
        return None if status == 200 and not words else f"not served: {came}"
    if case.expect == "refuse":
        return None if status == 400 else f"not refused with 400: {came}"
    denied = grpc == "7" if case.file == "grpc" else status == 403
    if not denied:
        return f"not denied: {came}"
    return None if f"AuthorizationPolicy {case.by} " in words else f"denied by another than {case.by}: {came}"

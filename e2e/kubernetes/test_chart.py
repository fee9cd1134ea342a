"""The chart as Helm sees it: what it renders, and what it refuses in which words. No cluster is needed, only Helm; HELM names
it. How the chart fits to the program is held by crates/posthouse/tests/chart.rs."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts/posthouse"
CASES = sorted(CHART.glob("ci/*-values.yaml"))
EVERYTHING = CHART / "ci/everything-values.yaml"
MINIMAL = CHART / "ci/minimal-values.yaml"
# Links in the clear: without the controller and what it needs.
CLEAR = ("--set", "tls=off")
SELECTOR = {
    "app.kubernetes.io/name": "posthouse",
    "app.kubernetes.io/instance": "relay",
    "app.kubernetes.io/component": "proxy",
}
CONTROLLER = {**SELECTOR, "app.kubernetes.io/component": "controller"}
PROXIES = {"ServiceAccount/posthouse", "ClusterRole/posthouse", "ClusterRoleBinding/posthouse", "Service/posthouse", "DaemonSet/posthouse"}
# The right to certificates is apart from the right to read the cluster: without TLS nobody has it.
IDENTITY = {f"{kind}/posthouse-identity" for kind in ("ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding")}
SIGNING = {
    f"{kind}/posthouse-controller"
    for kind in ("ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding", "Deployment", "PodDisruptionBudget")
}
CRD = "CustomResourceDefinition/authorizationpolicies.posthouse.io"


def helm(*args, check=True):
    program = shutil.which(os.environ.get("HELM", "helm"))
    if program is None:
        pytest.fail("these tests need Helm: set HELM to its path (e2e/cluster/build.sh builds one)", pytrace=False)
    done = subprocess.run([program, *map(str, args)], capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, f"helm {args}: {done.stderr}"
    return done


def render(*args, chart=CHART, release="relay"):
    """The objects of a release in the namespace mesh, as kind/name -> object; kind/name@namespace for those elsewhere."""
    def key(each):
        namespace = each["metadata"].get("namespace", "mesh")
        return f"{each['kind']}/{each['metadata']['name']}" + (f"@{namespace}" if namespace != "mesh" else "")

    text = helm("template", release, chart, "--namespace", "mesh", *args).stdout
    objects = [document for document in yaml.safe_load_all(text) if document]
    by_name = {key(each): each for each in objects}
    assert len(by_name) == len(objects), "each object once"
    return by_name


def pod(*args, of="DaemonSet/posthouse"):
    return render(*args)[of]["spec"]["template"]["spec"]


def container(*args, of="DaemonSet/posthouse"):
    (only,) = pod(*args, of=of)["containers"]
    return only


def env(*args, of="DaemonSet/posthouse"):
    """The container's variables; a reference as its field's path."""
    variables = container(*args, of=of)["env"]
    by_name = {v["name"]: v.get("value") or v["valueFrom"]["fieldRef"]["fieldPath"] for v in variables}
    assert len(by_name) == len(variables), "each variable once"
    return by_name


def name(case):
    return case.name.removesuffix("-values.yaml")


@pytest.mark.parametrize("values", CASES, ids=name)
def test_lint_finds_nothing(values):
    done = helm("lint", "--strict", CHART, "--values", values)
    assert "0 chart(s) failed" in done.stdout and "[WARNING]" not in done.stdout, done.stdout


def test_by_default_these_objects_are_made():
    objects = render()
    assert set(objects) == PROXIES | IDENTITY | SIGNING | {CRD}
    assert set(render(*CLEAR)) == PROXIES | {CRD}
    assert CRD not in render("--set", "crds.install=false")
    # One replica has nobody to stand in for it, so nothing guards it from an eviction.
    assert set(objects) - set(render("--set", "controller.replicas=1")) == {"PodDisruptionBudget/posthouse-controller"}
    assert set(render("--values", MINIMAL)) >= {"Service/posthouse", "DaemonSet/posthouse"}
    assert not any("Role" in name for name in render("--values", MINIMAL)), "permissions are somebody else's"
    more = {"ResourceQuota/posthouse-critical-pods", "PodMonitor/posthouse", "ServiceMonitor/posthouse"}
    assert set(render("--values", EVERYTHING)) >= set(objects) - {"ServiceAccount/posthouse"} | {"ServiceAccount/mesh"} | more


@pytest.mark.parametrize("values", CASES, ids=name)
def test_every_object_has_its_name_namespace_and_labels(values):
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    for name, each in render("--values", values).items():
        meta = each["metadata"]
        if name != CRD:
            wanted = {"ServiceAccount/mesh", "ServiceAccount/default", "ResourceQuota/posthouse-critical-pods"}
            assert name in wanted or meta["name"].split("-")[0] == "posthouse", name
        cluster = each["kind"].startswith("Cluster") or name == CRD
        # Roles for Services' certificates stand where those are.
        assert cluster or meta["namespace"] == "mesh" or each["kind"] in ("Role", "RoleBinding"), name
        assert not cluster or "namespace" not in meta, name
        labels = {
            **(CONTROLLER if meta["labels"]["app.kubernetes.io/component"] == "controller" else SELECTOR),
            "app.kubernetes.io/version": chart["appVersion"],
            "app.kubernetes.io/managed-by": "Helm",
            "helm.sh/chart": f"posthouse-{chart['version']}",
        }
        assert labels.items() <= meta["labels"].items(), name


@pytest.mark.parametrize("values", CASES, ids=name)
def test_an_uninstall_leaves_nothing_but_the_definition_of_policies(values):
    """What Helm does not remove: hooks, objects that are to be kept, CRDs, namespaces. With the definition every policy would go."""
    for name, each in render("--values", values).items():
        helms = {key: value for key, value in each["metadata"].get("annotations", {}).items() if key.startswith("helm.sh/")}
        assert helms == ({"helm.sh/resource-policy": "keep"} if name == CRD else {}), name
        assert each["kind"] != "Namespace" and (each["kind"] != "CustomResourceDefinition" or name == CRD)
    assert not (CHART / "crds").exists(), "Helm never upgrades what is there"


def test_names_are_fixed_whatever_the_release_is_called():
    """The proxies find each other by the Service posthouse. A release may be a number, too."""
    objects = render(release="7")
    assert {"Service/posthouse", "DaemonSet/posthouse", "Deployment/posthouse-controller"} <= set(objects)
    assert objects["DaemonSet/posthouse"]["metadata"]["labels"]["app.kubernetes.io/instance"] == "7"


@pytest.mark.parametrize("values", CASES, ids=name)
def test_nothing_privileged_but_the_host_network(values):
    spec = pod("--values", values)
    assert spec["hostNetwork"] is True and spec["dnsPolicy"] == "ClusterFirstWithHostNet"
    assert not {"hostPID", "hostIPC"} & spec.keys()
    assert spec["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": 41404, "runAsGroup": 41404, "seccompProfile": {"type": "RuntimeDefault"},
    }
    (only,) = spec["containers"]
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }
    assert "initContainers" not in spec
    assert all(set(volume) == {"name", "emptyDir"} for volume in spec["volumes"]), "no host paths, no secrets"
    assert all(volume["emptyDir"]["sizeLimit"] for volume in spec["volumes"])
    assert {volume["name"] for volume in spec["volumes"]} == {mount["name"] for mount in only["volumeMounts"]}
    assert spec["enableServiceLinks"] is False


def test_only_the_pods_get_a_token_and_each_its_own():
    objects = render()
    for account, owner in (("posthouse", "DaemonSet/posthouse"), ("posthouse-controller", "Deployment/posthouse-controller")):
        assert objects[f"ServiceAccount/{account}"]["automountServiceAccountToken"] is False
        spec = objects[owner]["spec"]["template"]["spec"]
        assert spec["automountServiceAccountToken"] is True and spec["serviceAccountName"] == account
    everything = render("--values", EVERYTHING)
    bindings = {name: each for name, each in everything.items() if each["kind"] in ("ClusterRoleBinding", "RoleBinding")}
    for name, binding in bindings.items():
        account = "posthouse-controller" if name.endswith("/posthouse-controller") else "mesh"
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "mesh"}], name
        assert binding["roleRef"]["name"] == binding["metadata"]["name"], name
        assert binding["roleRef"]["kind"] == binding["kind"].removesuffix("Binding"), name


def test_nobody_reads_secrets_of_the_cluster_and_the_proxies_not_the_authoritys():
    """The authority's key is in a Secret that the controller alone reads, by its name. Secrets of a namespace are read by the proxies
    only where the values say so."""
    def rules(objects):
        return [
            (name, rule) for name, each in objects.items() if each["kind"] in ("ClusterRole", "Role")
            for rule in each["rules"] if {"secrets", "*"} & set(rule["resources"])
        ]

    assert {name for name, _ in rules(render())} == {"Role/posthouse-controller"}
    for _, rule in rules(render()):
        assert rule.get("resourceNames") == ["posthouse-ca"] or rule["verbs"] == ["create"], rule
    assert not rules(render(*CLEAR))
    named = render("--set-json", 'tlsSecretNamespaces=["shop","bank"]')
    assert {name for name, _ in rules(named)} == {"Role/posthouse-controller", "Role/posthouse-tls@shop", "Role/posthouse-tls@bank"}
    for namespace in ("shop", "bank"):
        binding = named[f"RoleBinding/posthouse-tls@{namespace}"]
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "posthouse", "namespace": "mesh"}]
    assert env("--set-json", 'tlsSecretNamespaces=["shop","bank"]')["POSTHOUSE_TLS_SECRET_NAMESPACES"] == "shop,bank"
    assert not any("*" in rule["verbs"] for each in render().values() for rule in each.get("rules", []))


@pytest.mark.parametrize("values", CASES, ids=name)
def test_the_controller_has_no_privilege_and_no_host_network(values):
    objects = render("--values", values)
    if "Deployment/posthouse-controller" not in objects:
        assert env("--values", values)["POSTHOUSE_TLS"] == "off"
        return
    spec = pod("--values", values, of="Deployment/posthouse-controller")
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers", "volumes"} & spec.keys()
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    # Whoever has the proxies' number may share their ports on a node.
    assert spec["securityContext"]["runAsUser"] != 41404
    (only,) = spec["containers"]
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }
    assert only["image"] == container("--values", values)["image"], "one image"
    deployment = objects["Deployment/posthouse-controller"]["spec"]
    assert deployment["selector"]["matchLabels"] == CONTROLLER, "it is not taken for a proxy"
    budget = objects.get("PodDisruptionBudget/posthouse-controller")
    assert (budget is None) == (deployment["replicas"] == 1)
    assert budget is None or budget["spec"] == {"maxUnavailable": 1, "selector": deployment["selector"]}


def test_the_controllers_values_reach_it():
    variables = env("--values", EVERYTHING, of="Deployment/posthouse-controller")
    wanted = {
        "POSTHOUSE_POD_NAME": "metadata.name",
        "POSTHOUSE_NAMESPACE": "metadata.namespace",
        "POSTHOUSE_PROXY_ACCOUNT": "mesh",
        "POSTHOUSE_TRUST_DOMAIN": "mesh.example",
        "POSTHOUSE_CA": "adopt",
        "POSTHOUSE_CA_LIFETIME": "720h",
        "POSTHOUSE_CERTIFICATE_LIFETIME": "1h",
    }
    assert wanted.items() <= variables.items()
    assert env("--values", EVERYTHING)["POSTHOUSE_TRUST_DOMAIN"] == "mesh.example", "the proxies' is the same"
    assert render("--values", EVERYTHING)["Deployment/posthouse-controller"]["spec"]["replicas"] == 3


@pytest.mark.parametrize("values", CASES, ids=name)
def test_no_port_is_declared(values):
    """On the host network each would be a host port, and a surge pod could not be scheduled."""
    assert "ports" not in container("--values", values)


def test_probes_ask_the_right_process_and_have_patience():
    only = container()
    start, ready, live = only["startupProbe"], only["readinessProbe"], only["livenessProbe"]
    assert start["exec"]["command"] == ["/posthouse", "ready"]
    assert start["periodSeconds"] == 1 and start["failureThreshold"] == 86400
    assert ready["httpGet"] == {"path": "/readyz", "port": 9991}
    assert ready["periodSeconds"] <= 5 and ready["failureThreshold"] == 3
    assert live["httpGet"] == {"path": "/livez", "port": 9991}
    assert live["periodSeconds"] * live["failureThreshold"] >= 60
    socket = env()["POSTHOUSE_ADMIN_SOCKET"]
    mounts = {mount["mountPath"]: mount["name"] for mount in only["volumeMounts"]}
    (volume,) = [v for v in pod()["volumes"] if v["name"] == mounts[str(Path(socket).parent)]]
    assert volume["emptyDir"]["medium"] == "Memory"


def test_the_nodes_key_is_kept_in_memory_and_only_with_tls():
    file = Path(env()["POSTHOUSE_IDENTITY_CACHE"])
    mounts = {mount["mountPath"]: mount["name"] for mount in container()["volumeMounts"]}
    (volume,) = [v for v in pod()["volumes"] if v["name"] == mounts[str(file.parent)]]
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "1Mi"}
    assert "fsGroup" not in pod()["securityContext"], "it would open the file to a group, and the proxy refuse it"
    assert "POSTHOUSE_IDENTITY_CACHE" in env("--set", "tls=service")
    assert "POSTHOUSE_IDENTITY_CACHE" not in env(*CLEAR)


def test_an_upgrade_starts_the_new_pod_beside_the_old_one():
    strategy = render()["DaemonSet/posthouse"]["spec"]["updateStrategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert render("--set", "updateStrategy.type=OnDelete")["DaemonSet/posthouse"]["spec"]["updateStrategy"] == {"type": "OnDelete"}
    percent = render("--set", "updateStrategy.rollingUpdate.maxSurge=10%")["DaemonSet/posthouse"]["spec"]["updateStrategy"]
    assert percent["rollingUpdate"]["maxSurge"] == "10%"


@pytest.mark.parametrize("seconds", [0, 30, 3600])
def test_the_pod_lives_longer_than_its_drain(seconds):
    setting = ("--set", f"drainSeconds={seconds}")
    assert env(*setting)["POSTHOUSE_DRAIN"] == f"{seconds}s"
    assert pod(*setting)["terminationGracePeriodSeconds"] == seconds + 15


def test_every_node_gets_one_before_other_pods():
    spec = pod()
    assert spec["priorityClassName"] == "system-node-critical"
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux"}
    assert "limits" in container()["resources"] and "cpu" not in container()["resources"]["limits"]
    quota = render("--set", "criticalPodsQuota.enabled=true")["ResourceQuota/posthouse-critical-pods"]["spec"]
    (scope,) = quota["scopeSelector"]["matchExpressions"]
    assert scope["scopeName"] == "PriorityClass" and scope["operator"] == "In"
    assert scope["values"] == ["system-node-critical", "system-cluster-critical"], "the proxies' and the controller's"
    quota = render("--set", "criticalPodsQuota.enabled=true", *CLEAR)["ResourceQuota/posthouse-critical-pods"]["spec"]
    assert quota["scopeSelector"]["matchExpressions"][0]["values"] == ["system-node-critical"]


def test_the_service_finds_ready_pods_by_number():
    objects = render()
    service, daemon_set = objects["Service/posthouse"]["spec"], objects["DaemonSet/posthouse"]["spec"]
    assert service["clusterIP"] == "None" and not service.get("publishNotReadyAddresses")
    assert service["ports"] == [
        {"name": "link", "port": 4141, "targetPort": 4141},
        {"name": "metrics", "port": 9991, "targetPort": 9991},
    ]
    assert service["selector"] == daemon_set["selector"]["matchLabels"] == SELECTOR
    assert SELECTOR.items() <= daemon_set["template"]["metadata"]["labels"].items()


def test_a_nodes_name_and_addresses_come_from_its_pod():
    one = env()
    assert one["POSTHOUSE_NODE_NAME"] == "spec.nodeName" and one["POSTHOUSE_NAMESPACE"] == "metadata.namespace"
    assert one["POSTHOUSE_NODE_IP"] == "status.hostIP"
    assert env("--set", "dualStack=true")["POSTHOUSE_NODE_IP"] == "status.hostIPs"


def test_values_reach_the_program():
    variables = env("--values", EVERYTHING)
    wanted = {
        "POSTHOUSE_CLUSTER_DOMAIN": "k8s.example",
        "POSTHOUSE_MISSING_PEER": "fail",
        "POSTHOUSE_WORKERS": "4",
        "POSTHOUSE_DRAIN": "120s",
        "POSTHOUSE_LOG": "info,posthouse_proxy=debug",
        "POSTHOUSE_LOG_FORMAT": "json",
        "POSTHOUSE_TLS": "service",
        "POSTHOUSE_TLS_PERMISSIVE": "true",
        "RUST_BACKTRACE": "1",
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "KUBERNETES_SERVICE_PORT": "443",
    }
    assert wanted.items() <= variables.items()
    assert "POSTHOUSE_WORKERS" not in env(), "by default the program counts the cores itself"
    assert env()["POSTHOUSE_TLS"] == "node" and "POSTHOUSE_TLS_PERMISSIVE" not in env()
    assert "POSTHOUSE_MISSING_PEER" not in env(), "the program's default goes by tls"
    assert "POSTHOUSE_SNAPSHOT" in env() and "POSTHOUSE_SNAPSHOT" not in env("--set", "snapshot.enabled=false")


@pytest.mark.parametrize("host", ["192.0.2.1", "fd00::1", "::1", "api.example.com"])
def test_another_address_of_the_api_server(host):
    variables = env("--set", f"kubernetesApi.host={host}")
    assert (variables["KUBERNETES_SERVICE_HOST"], variables["KUBERNETES_SERVICE_PORT"]) == (host, "6443")
    assert "KUBERNETES_SERVICE_PORT" not in env("--set", "kubernetesApi.port=443"), "the port is used with host only"


def test_a_digest_wins_over_the_tag():
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    digest = "sha256:" + "0123456789abcdef" * 4
    assert container()["image"] == f"posthouse:{version}"
    assert container("--set", "image.tag=v9")["image"] == "posthouse:v9"
    assert container("--set", f"image.tag=v9,image.digest={digest}")["image"] == f"posthouse@{digest}"


def relabelled(rules, labels):
    """Prometheus' relabeling, as far as the chart uses it."""
    for rule in rules:
        value = ";".join(labels.get(label, "") for label in rule["sourceLabels"])
        found = re.fullmatch(rule.get("regex", "(.*)"), value)
        if found:
            labels[rule["targetLabel"]] = rule.get("replacement", "$1").replace("$1", found[1])
    return labels


def test_monitors_find_the_metrics_port_without_a_declared_port():
    objects = render("--values", EVERYTHING)
    (target,) = objects["PodMonitor/posthouse"]["spec"]["podMetricsEndpoints"]
    assert not {"port", "portNumber", "targetPort"} & target.keys(), "these choose among declared ports"
    for ip, address in [("192.0.2.7", "192.0.2.7:9991"), ("2001:db8::7", "[2001:db8::7]:9991")]:
        # What Prometheus makes of a container without ports.
        labels = {"__address__": ip, "__meta_kubernetes_pod_ip": ip, "__meta_kubernetes_pod_node_name": "node-1"}
        labels = relabelled(target["relabelings"], labels)
        assert labels["__address__"] == address and labels["node"] == "node-1"
    (endpoint,) = objects["ServiceMonitor/posthouse"]["spec"]["endpoints"]
    assert endpoint["port"] in [port["name"] for port in objects["Service/posthouse"]["spec"]["ports"]]
    for monitor in ("PodMonitor", "ServiceMonitor"):
        assert objects[f"{monitor}/posthouse"]["spec"]["selector"]["matchLabels"] == SELECTOR
        assert objects[f"{monitor}/posthouse"]["metadata"]["labels"]["release"] == "prometheus"


def test_scrape_annotations_stand_beside_those_of_the_values():
    annotations = render("--values", EVERYTHING)["DaemonSet/posthouse"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {
        "prometheus.io/scrape": "true", "prometheus.io/port": "9991", "prometheus.io/path": "/metrics",
        "example.com/owner": "platform",
    }
    assert "annotations" not in render()["DaemonSet/posthouse"]["spec"]["template"]["metadata"]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        # A typing error, at each depth.
        ("drainsSeconds=30", ["drainsSeconds"]),
        ("image.tagg=v1", ["/image", "tagg"]),
        ("metrics.podMonitor.intervall=30s", ["/metrics/podMonitor", "intervall"]),
        ("updateStrategy.maxSurge=1", ["/updateStrategy", "maxSurge"]),
        ("rbac.enabled=true", ["/rbac", "enabled"]),
        ('tolerations=[{"operater":"Exists"}]', ["/tolerations/0", "operater"]),
        ('affinity={"nodeAfinity":{}}', ["/affinity", "nodeAfinity"]),
        ('resources={"request":{"cpu":1}}', ["/resources", "request"]),
        # Ports are fixed.
        ("ports.outbound=5000", ["ports"]),
        # A wrong type.
        ("workers=two", ["/workers", "integer"]),
        ("workers=1.5", ["/workers"]),
        ("rbac.create=yes", ["/rbac/create", "boolean"]),
        ("image=posthouse:v1", ["/image", "object"]),
        ("nodeSelector=linux", ["/nodeSelector", "object"]),
        ('podAnnotations={"a":1}', ["/podAnnotations/a", "string"]),
        ('extraEnv=[{"name":"A","value":7}]', ["/extraEnv/0/value", "string"]),
        # A value that makes no sense.
        ("tls=mutual", ["/tls", "'off'", "'node'", "'service'"]),
        ("tls=true", ["/tls", "'off'"]),
        ('{"tls":"off","tlsPermissive":true}', ["tlsPermissive"]),
        ("trustDomain=Mesh/Example", ["/trustDomain", "Mesh/Example"]),
        ("controller.replicas=0", ["/controller/replicas", "minimum"]),
        ("controller.ca=borrow", ["/controller/ca", "'create', 'adopt'"]),
        ("controller.caLifetime=soon", ["/controller/caLifetime", "soon"]),
        ("controller.certificateLifetime=1d", ["/controller/certificateLifetime", "1d"]),
        ("controller.certifcateLifetime=1h", ["/controller", "certifcateLifetime"]),
        ("missingPeer=maybe", ["/missingPeer", "'direct', 'fail'"]),
        ("drainSeconds=30s", ["/drainSeconds", "integer"]),
        ("drainSeconds=-1", ["/drainSeconds", "minimum"]),
        ("drainSeconds=86400", ["/drainSeconds", "maximum"]),
        ("workers=4096", ["/workers", "maximum"]),
        ("metrics.podMonitor.interval=soon", ["/metrics/podMonitor/interval", "soon"]),
        ("metrics.serviceMonitor.interval=30", ["/metrics/serviceMonitor/interval", "string"]),
        ("log.level=loud", ["/log/level", "loud"]),
        ("log.format=xml", ["/log/format", "'text', 'json'"]),
        ("clusterDomain=Cluster_Local", ["/clusterDomain", "Cluster_Local"]),
        ("image.repository=", ["/image/repository"]),
        ("image.digest=0123", ["/image/digest", "0123"]),
        ("image.pullPolicy=Sometimes", ["/image/pullPolicy", "IfNotPresent"]),
        ("snapshot.sizeLimit=much", ["/snapshot/sizeLimit", "much"]),
        ('resources={"limits":{"memory":"lots"}}', ["/resources/limits/memory", "lots"]),
        ("updateStrategy.type=Sideways", ["/updateStrategy/type", "RollingUpdate"]),
        ("updateStrategy.rollingUpdate.maxSurge=ten", ["/updateStrategy/rollingUpdate/maxSurge", "ten"]),
        # What the chart itself refuses.
        ("updateStrategy.rollingUpdate.maxSurge=0", ["updateStrategy.rollingUpdate", "maxSurge (0)", "maxUnavailable (0)"]),
        ("updateStrategy.rollingUpdate.maxUnavailable=10%", ["updateStrategy.rollingUpdate", "maxUnavailable (10%)"]),
        ('extraEnv=[{"name":"POSTHOUSE_LOG","value":"x"}]', ["extraEnv[0].name", "POSTHOUSE_LOG"]),
        ('extraEnv=[{"name":"A","value":""},{"name":"KUBERNETES_SERVICE_HOST","value":"x"}]', ["extraEnv[1].name", "kubernetesApi.host"]),
        ('extraEnv=[{"name":"KUBERNETES_SERVICE_PORT","value":"1"}]', ["extraEnv[0].name", "kubernetesApi.port"]),
        ("image.repository=registry.example:5000/mesh/posthouse:v1", ["image.repository", "the tag goes to image.tag"]),
        ("image.repository=posthouse:v1", ["image.repository", "the tag goes to image.tag"]),
        ("kubernetesApi.host=10.0.0.1:6443", ["kubernetesApi.host", "the port goes to kubernetesApi.port"]),
        ("kubernetesApi.host=https://10.0.0.1", ["/kubernetesApi/host"]),
        ('podLabels={"app.kubernetes.io/name":"web"}', ["podLabels", "app.kubernetes.io/name"]),
        ('metrics={"podMonitor":{"labels":{"helm.sh/chart":"x"}}}', ["metrics.podMonitor.labels", "helm.sh/chart"]),
        ('{"criticalPodsQuota":{"enabled":true},"priorityClassName":""}', ["criticalPodsQuota.enabled", "priorityClassName"]),
    ],
)
def test_what_is_wrong_is_refused_by_name(setting, words):
    flag = "--set-json" if "{" in setting or "[" in setting else "--set"
    done = helm("template", "relay", CHART, flag, setting, check=False)
    assert done.returncode != 0, f"{setting} is accepted"
    for word in words:
        assert word in done.stderr, f"{setting}: {word!r} is not in: {done.stderr}"


def test_a_bare_off_is_understood(tmp_path):
    """YAML reads it as false."""
    values = tmp_path / "values.yaml"
    values.write_text("tls: off\n")
    assert env("--values", values)["POSTHOUSE_TLS"] == "off"
    assert "Deployment/posthouse-controller" not in render("--values", values)


def test_an_old_kubernetes_is_refused_by_its_version():
    """Before 1.30 a token does not say for which node it was made, so nobody could be given a node's certificate."""
    done = helm("template", "relay", CHART, "--kube-version", "1.29.5", check=False)
    assert done.returncode != 0 and "1.30" in done.stderr and "tls" in done.stderr, done.stderr
    assert helm("template", "relay", CHART, "--kube-version", "1.29.5", *CLEAR).returncode == 0


def test_the_memory_limit_can_be_taken_away():
    assert "memory" not in container("--set", "resources.limits.memory=null")["resources"].get("limits", {})


def test_it_can_be_a_dependency(tmp_path):
    """Helm hands global values down, which a strict schema must not refuse."""
    parent = tmp_path / "platform"
    shutil.copytree(CHART, parent / "charts/posthouse")
    (parent / "Chart.yaml").write_text("apiVersion: v2\nname: platform\nversion: 1.0.0\n")
    (parent / "values.yaml").write_text("global: {region: north}\nposthouse: {drainSeconds: 60}\n")
    spec = render(chart=parent)["DaemonSet/posthouse"]["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == 75


def notes(*args):
    text = helm("install", "relay", CHART, "--namespace", "mesh", "--dry-run=client", *args).stdout
    return text.split("NOTES:\n", 1)[1]


def test_the_notes_warn_of_an_image_that_no_registry_has():
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    words = f"image posthouse:{version} has no registry in its name: push one and set image.repository"
    assert words in notes()
    assert "no registry" not in notes("--set", "image.repository=registry.example:5000/posthouse")


def test_the_notes_show_how_to_go_on():
    text = notes("--set", "clusterDomain=k8s.example")
    for words in (
        "kubectl -n mesh rollout status ds/posthouse",
        "kubectl -n mesh rollout status deploy/posthouse-controller",
        "posthouse check",
        "posthouse env",
        "port-forward ds/posthouse 9990",
        "kubectl label namespace mesh pod-security.kubernetes.io/enforce=privileged",
        "criticalPodsQuota.enabled=true",
    ):
        assert words in text, f"{words!r} is not in:\n{text}"
    assert "WARNING: tls" not in text
    assert "WARNING: tls is off" in notes(*CLEAR)
    assert "WARNING: tlsPermissive is on" in notes("--set", "tlsPermissive=true")
    (block,) = re.findall(r"^ +env:\n(?: +.*\n)+", text, re.MULTILINE)
    variables = {each["name"]: each.get("value") for each in yaml.safe_load(block)["env"]}
    assert variables["http_proxy"] == variables["HTTPS_PROXY"] == "http://$(NODE_IP):4140"
    assert "kubernetes.default.svc.k8s.example" in variables["NO_PROXY"]

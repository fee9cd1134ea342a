"""curl, in each of the ways in which a pod may hand its request to the proxy."""

import json
import re
import subprocess

import pytest

NODES = {"node-a", "node-b", "node-c"}


def curl(*arguments):
    ran = subprocess.run(
        ["curl", "--silent", "--show-error", "--fail", "--max-time", "20", *arguments],
        capture_output=True, text=True,
    )
    assert ran.returncode == 0, f"curl {' '.join(arguments)}: {ran.stderr}"
    return ran.stdout


def ways(demo, node):
    outbound = demo.proxies[node]["outbound"]
    return {
        "absolute form": ["--proxy", f"http://{outbound}"],
        "h2c to the port": ["--http2-prior-knowledge", "--connect-to", f"::{outbound}"],
        "origin form to the port": ["--connect-to", f"::{outbound}"],
        "tunnel": ["--proxytunnel", "--proxy", f"http://{outbound}"],
        "h2c in a tunnel": ["--http2-prior-knowledge", "--proxytunnel", "--proxy", f"http://{outbound}"],
    }


WAYS = ["absolute form", "h2c to the port", "origin form to the port", "tunnel", "h2c in a tunnel"]


@pytest.mark.parametrize("way", WAYS)
def test_thirty_calls_are_answered_from_all_three_nodes(demo, way):
    arguments = ways(demo, "node-a")[way]
    answers = [json.loads(curl(*arguments, "http://echo.demo/")) for _ in range(30)]
    assert {answer["node"] for answer in answers} == NODES


@pytest.mark.parametrize("way", ["absolute form", "tunnel", "h2c to the port"])
def test_hello_answers_from_all_three_nodes(demo, way):
    """hello's Service says `http`, so HTTP/2 is translated on its way."""
    arguments = ways(demo, "node-a")[way]
    lines = [curl(*arguments, "http://hello.demo/") for _ in range(30)]
    found = [re.fullmatch(r"hello from (hello-[abc]) on (node-[abc])\n", line) for line in lines]
    assert all(found), lines
    assert {match[2] for match in found} == NODES


@pytest.mark.parametrize("node", sorted(NODES))
@pytest.mark.parametrize("name", ["echo.demo", "echo.demo.svc", "echo.demo.svc.cluster.local.", "ECHO.Demo:80"])
def test_every_node_knows_every_spelling(demo, node, name):
    answer = json.loads(curl(*ways(demo, node)["absolute form"], f"http://{name}/"))
    assert answer["pod"].startswith("echo-")


def test_a_short_name_is_of_the_senders_own_namespace(demo):
    client = demo.proxies["node-b"]["client_ip"]
    answer = json.loads(curl("--interface", client, "--proxy", demo.proxy_url("node-b"), "http://echo/"))
    assert answer["pod"].startswith("echo-")


@pytest.mark.parametrize("way", WAYS)
def test_a_request_arrives_as_it_was_sent(demo, way):
    arguments = ways(demo, "node-a")[way]
    answer = json.loads(curl(
        *arguments, "--request", "PUT", "--data", "a body", "--header", "X-Two: 1", "--header", "X-Two: 2",
        "http://echo.demo/some/path?with=query",
    ))
    assert (answer["method"], answer["path"], answer["query"]) == ("PUT", "/some/path", "with=query")
    assert answer["body"] == "a body"
    assert ", ".join(answer["headers"]["x-two"]) == "1, 2"
    told = [name for name in answer["headers"] if name.startswith(("posthouse-", "proxy-"))]
    assert told == [], "metadata of the proxies reached the pod"


def test_a_name_that_nobody_has_is_refused_with_a_reason(demo):
    ran = subprocess.run(
        ["curl", "--silent", "--include", "--max-time", "20", "--proxy", demo.proxy_url(), "http://nobody.demo/"],
        capture_output=True, text=True, check=True,
    )
    assert "error=destination_not_found" in ran.stdout, ran.stdout
    assert "nobody" in ran.stdout.split("\r\n\r\n")[-1]


@pytest.mark.parametrize("path", ["/services", "/services/demo/echo", "/peers", "/config"])
def test_the_admin_api_answers_json(demo, path):
    json.loads(curl(f"http://{demo.proxies['node-a']['admin']}{path}"))


def test_metrics_name_the_services(demo):
    curl(*ways(demo, "node-c")["absolute form"], "http://echo.demo/")
    text = curl(f"http://{demo.proxies['node-c']['metrics']}/metrics")
    assert "echo" in text and "# TYPE" in text

"""gRPC from Python with nothing but http_proxy in the environment, and the same checks straight to a pod: through two
proxies a client must not be able to tell the difference, except that every pod answers."""

import collections
import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from conftest import until
from greeter import Greeter, direct

TARGET = "greeter.demo:50051"


@pytest.fixture(scope="module")
def pods(demo):
    """A direct client of each greeter pod, for its counters."""
    channels = [direct(pod["address"]) for pod in demo.of("greeter")]
    yield [Greeter(channel) for channel in channels]
    for channel in channels:
        channel.close()


@pytest.fixture(params=["through the proxies", "straight to a pod"])
def channel(request, demo, monkeypatch):
    if request.param == "straight to a pod":
        opened = direct(demo.of("greeter")[0]["address"])
    else:
        monkeypatch.setenv("http_proxy", demo.proxy_url())
        # A pool of its own: a connection of an earlier test must not serve this one.
        opened = grpc.insecure_channel(TARGET, options=[("grpc.use_local_subchannel_pool", 1)])
    yield opened
    opened.close()


@pytest.fixture
def greeter(channel):
    return Greeter(channel)


def cancelled(pods):
    return sum(pod.Counters(pod.CountersRequest()).cancelled for pod in pods)


def in_flight(pods):
    return sum(pod.Counters(pod.CountersRequest()).in_flight for pod in pods)


def test_one_channel_reaches_every_pod_evenly(demo, monkeypatch):
    monkeypatch.setenv("http_proxy", demo.proxy_url())
    with grpc.insecure_channel(TARGET) as channel:
        greeter = Greeter(channel)
        request = greeter.HelloRequest(name="you")
        pods = collections.Counter(greeter.SayHello(request, timeout=20).pod for _ in range(300))
    assert set(pods) == {"greeter-a", "greeter-b", "greeter-c"}
    assert all(60 <= count <= 140 for count in pods.values()), pods


def test_a_reply_names_who_was_asked_for(greeter):
    reply = greeter.SayHello(greeter.HelloRequest(name="you"), timeout=20)
    assert reply.message == f"Hello you from {reply.pod} on {reply.node}"


def test_server_streaming_brings_every_reply_in_one_stream(greeter):
    replies = list(greeter.SayHelloStream(greeter.HelloRequest(name="you", replies=500), timeout=30))
    assert len(replies) == 500
    assert len({reply.pod for reply in replies}) == 1, "a stream stays with one pod"


def test_replies_come_while_the_stream_is_open(greeter):
    call = greeter.SayHelloStream(greeter.HelloRequest(name="you", replies=2, delay_ms=100), timeout=30)
    assert next(call).message.startswith("Hello you")
    call.cancel()


def test_bidirectional_streaming_answers_each_message_before_the_next(greeter):
    turn = threading.Semaphore(1)

    def requests():
        for number in range(50):
            assert turn.acquire(timeout=20), "no reply to the last message"
            yield greeter.HelloRequest(name=f"you {number}")

    answered = 0
    for reply in greeter.Chat(requests(), timeout=60):
        assert reply.message.startswith(f"Hello you {answered} ")
        answered += 1
        turn.release()
    assert answered == 50


def test_a_deadline_ends_the_call_at_both_ends(greeter, pods):
    before = cancelled(pods)
    with pytest.raises(grpc.RpcError) as raised:
        greeter.SayHello(greeter.HelloRequest(name="you", delay_ms=60_000), timeout=3)
    assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    until("the pod sees the end of the call", lambda: cancelled(pods) == before + 1)


def test_a_cancel_ends_the_call_at_both_ends(greeter, pods):
    before = cancelled(pods)
    call = greeter.SayHello.future(greeter.HelloRequest(name="you", delay_ms=60_000), timeout=60)
    until("the call is at a pod", lambda: in_flight(pods) == 1)
    call.cancel()
    assert call.code() == grpc.StatusCode.CANCELLED
    until("the pod sees the cancel", lambda: cancelled(pods) == before + 1)


def test_a_stream_that_is_cancelled_ends_at_the_pod(greeter, pods):
    before = cancelled(pods)
    call = greeter.SayHelloStream(greeter.HelloRequest(name="you", replies=1_000_000, delay_ms=1), timeout=60)
    for _ in range(10):
        next(call)
    call.cancel()
    until("the pod sees the cancel", lambda: cancelled(pods) == before + 1)


def test_an_unknown_method_is_the_pods_own_answer(channel):
    call = channel.unary_unary("/helloworld.Greeter/Nothing")
    with pytest.raises(grpc.RpcError) as raised:
        call(b"", timeout=20)
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_health(channel):
    health = health_pb2_grpc.HealthStub(channel)
    answer = health.Check(health_pb2.HealthCheckRequest(service="helloworld.Greeter"), timeout=20)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_service_that_nobody_has_gets_a_grpc_status_with_words(demo, monkeypatch):
    """The tunnel opens before the destination is known to fail, or is refused: either way the client gets a status."""
    monkeypatch.setenv("http_proxy", demo.proxy_url())
    with grpc.insecure_channel("nobody.demo:50051") as channel:
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/helloworld.Greeter/SayHello")(b"", timeout=10)
    assert raised.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED)

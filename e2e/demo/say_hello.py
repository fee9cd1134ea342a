"""Twelve greetings over one channel: watch the pods take turns."""

import sys

import grpc

from greeter import Greeter

target = sys.argv[1] if len(sys.argv) > 1 else "greeter.demo:50051"
with grpc.insecure_channel(target) as channel:
    greeter = Greeter(channel)
    for _ in range(12):
        print(greeter.SayHello(greeter.HelloRequest(name="you")).message)

"""A client of helloworld.Greeter without generated stubs: it asks the server's reflection for the messages."""

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICE = "helloworld.Greeter"


class Greeter:
    """The four methods, by name, on one channel."""

    def __init__(self, channel):
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        service = pool.FindServiceByName(SERVICE)
        kinds = {
            (False, False): channel.unary_unary,
            (False, True): channel.unary_stream,
            (True, True): channel.stream_stream,
        }
        for method in service.methods:
            call = kinds[method.client_streaming, method.server_streaming](
                f"/{SERVICE}/{method.name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            setattr(self, method.name, call)
        self.HelloRequest = GetMessageClass(service.methods_by_name["SayHello"].input_type)
        self.CountersRequest = GetMessageClass(service.methods_by_name["Counters"].input_type)


def direct(address):
    """A channel that ignores the proxy variables."""
    return grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)])

"""Messages are bytes, so that nothing has to be generated."""

import os
import threading
from concurrent import futures

import grpc

given_up = threading.Event()


def say(request, context):
    if request == b"fail":
        context.set_trailing_metadata((("reason", "because"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now")
    if request == b"who":
        return os.environ["LONGSHORE_INSTANCE"].encode()
    if request == b"given up?":
        return str(given_up.wait(20)).encode()
    return request


def hang(request, context):
    context.add_callback(given_up.set)
    given_up.wait(60)
    return b"too late"


def count(request, context):
    for number in range(int(request)):
        yield str(number).encode()


def chat(requests, context):
    for request in requests:
        yield request.upper()


server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
server.add_generic_rpc_handlers((
    grpc.method_handlers_generic_handler("test.Echo", {
        "Say": grpc.unary_unary_rpc_method_handler(say),
        "Hang": grpc.unary_unary_rpc_method_handler(hang),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
    }),
))
server.add_insecure_port("0.0.0.0:50051")
server.start()
server.wait_for_termination()

"""A gRPC server with the standard health service, as it should be run behind a load balancer.

On SIGTERM the health service first says NOT_SERVING; calls are served until the balancer has
noticed, and only then the server stops, which finishes the calls under way.
"""

import os
import signal
import threading
import time
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

NAME = os.environ["NAME"].encode()
# How long the balancer may need to notice: more than its time to eject.
DELAY = float(os.environ["SHUTDOWN_DELAY_SECONDS"])

# Field 1 of type string, by hand, so that no code has to be generated.
ANSWER = bytes([0x0A, len(NAME)]) + NAME


def name(request, context):
    return ANSWER


def slow(request, context):
    time.sleep(1)
    return ANSWER


def main():
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    methods = {
        "Name": grpc.unary_unary_rpc_method_handler(name),
        "Slow": grpc.unary_unary_rpc_method_handler(slow),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("lab.Echo", methods),)
    )
    servicer = health.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    servicer.set("lab.Echo", health_pb2.HealthCheckResponse.SERVING)
    server.add_insecure_port(f"[::]:{os.environ['PORT']}")

    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    server.start()
    stop.wait()
    servicer.enter_graceful_shutdown()
    time.sleep(DELAY)
    server.stop(grace=30).wait()


if __name__ == "__main__":
    main()

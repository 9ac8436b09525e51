"""Gunicorn for the Django application, as it should be run behind a load balancer.

On SIGTERM the workers first say that they are not ready and go on serving until the balancer has
noticed; only then the master ends them, which finish the requests under way. The signal must go to
the master alone (in systemd: KillMode=mixed).
"""

import os
import signal

import stopping

# How long the balancer may need to notice: more than its time to eject.
DELAY = float(os.environ["SHUTDOWN_DELAY_SECONDS"])

wsgi_app = "app:application"
bind = f"[::]:{os.environ['PORT']}"
workers = 1
worker_class = "gthread"
threads = 8
keepalive = 3600
graceful_timeout = 30
control_socket_disable = True


def when_ready(server):
    """Runs in the master, once it has its own handlers."""
    stop = signal.getsignal(signal.SIGTERM)

    def fail_readiness(number, frame):
        stopping.EVENT.set()
        signal.setitimer(signal.ITIMER_REAL, DELAY)

    signal.signal(signal.SIGTERM, fail_readiness)
    signal.signal(signal.SIGALRM, lambda number, frame: stop(signal.SIGTERM, frame))


def pre_request(worker, request):
    """Clients that keep their connection go elsewhere with the next request."""
    if stopping.EVENT.is_set():
        request.force_close()

"""Whether this server is about to stop: set in gunicorn's master, seen by its workers."""

import multiprocessing

EVENT = multiprocessing.Event()

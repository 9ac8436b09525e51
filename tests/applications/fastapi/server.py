"""A FastAPI application, under uvicorn, as it should be run behind a load balancer.

/livez says that the process works, /readyz that it wants traffic. On SIGTERM it first says that it
is not ready, goes on serving until the balancer has noticed, and only then lets uvicorn end, which
finishes the requests under way.
"""

import asyncio
import os
import signal

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

NAME = os.environ["NAME"]
# How long the balancer may need to notice: more than its time to eject.
DELAY = float(os.environ["SHUTDOWN_DELAY_SECONDS"])

stopping = False


class Server(uvicorn.Server):
    """Uvicorn, which would end at once by itself."""

    def handle_exit(self, sig, frame):
        global stopping
        if sig != signal.SIGTERM or stopping:
            super().handle_exit(sig, frame)
            return
        stopping = True
        asyncio.get_running_loop().call_later(DELAY, self._end)

    def _end(self):
        self.should_exit = True


app = FastAPI(openapi_url=None)


@app.middleware("http")
async def say_goodbye(request: Request, call_next):
    response = await call_next(request)
    if stopping:
        # Clients that keep their connection go elsewhere with the next request.
        response.headers["connection"] = "close"
    return response


@app.get("/livez", response_class=PlainTextResponse)
async def livez():
    return "ok"


@app.get("/readyz", response_class=PlainTextResponse)
async def readyz():
    return PlainTextResponse("stopping", 503) if stopping else "ok"


@app.get("/", response_class=PlainTextResponse)
async def index():
    return NAME


@app.get("/slow", response_class=PlainTextResponse)
async def slow():
    await asyncio.sleep(1)
    return NAME


if __name__ == "__main__":
    config = uvicorn.Config(
        app,
        host="::",
        port=int(os.environ["PORT"]),
        timeout_keep_alive=3600,
        log_level="warning",
    )
    Server(config).run()

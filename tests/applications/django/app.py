"""A Django application in one file, with health endpoints for a load balancer.

/livez says that the process works, /readyz that it wants traffic. How it stops is in
gunicorn.conf.py.
"""

import os
import time

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

import stopping

NAME = os.environ["NAME"]

settings.configure(
    ALLOWED_HOSTS=["*"],
    MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
    ROOT_URLCONF="app",
    SECRET_KEY="not secret: nothing is signed",
)


def text(body, status=200):
    return HttpResponse(body, status=status, content_type="text/plain")


def livez(request):
    return text("ok")


def readyz(request):
    return text("stopping", 503) if stopping.EVENT.is_set() else text("ok")


def index(request):
    return text(NAME)


def slow(request):
    time.sleep(1)
    return text(NAME)


urlpatterns = [
    path("livez", livez),
    path("readyz", readyz),
    path("", index),
    path("slow", slow),
]

application = get_wsgi_application()

"""A network between a process and its Redis: a proxy on loopback that holds each request up."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
from urllib.parse import urlsplit

CHUNK = 1 << 16
LOOK_SECONDS = 1.0
"""How often the proxy looks whether its process is still there."""


def move_redis_away(seconds: float) -> None:
    """Let this process reach the Redis of `REDIS_URL` by a round trip that takes so much longer."""
    url = urlsplit(os.environ["REDIS_URL"])
    listener = socket.create_server(("127.0.0.1", 0))
    process = multiprocessing.get_context("fork").Process(
        target=_serve, args=(listener, (url.hostname, url.port), seconds, os.getpid()), daemon=True
    )
    process.start()
    os.environ["REDIS_URL"] = url._replace(netloc=f"127.0.0.1:{listener.getsockname()[1]}").geturl()
    listener.close()


def _serve(listener: socket.socket, server: tuple[str, int], seconds: float, parent: int) -> None:
    listener.settimeout(LOOK_SECONDS)
    while os.getppid() == parent:
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        client.settimeout(None)
        redis = socket.create_connection(server)
        for source, target, delay in ((client, redis, seconds), (redis, client, 0.0)):
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_pass_on, args=(source, target, delay), daemon=True).start()


def _pass_on(source: socket.socket, target: socket.socket, delay: float) -> None:
    while data := source.recv(CHUNK):
        if delay:
            time.sleep(delay)
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)

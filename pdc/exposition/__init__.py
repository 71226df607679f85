"""A scrape, from one read of the storage to bytes on a socket: collect, render, negotiate, serve."""

from .collection import collect, generate_latest, read_storage
from .messages import ProtobufEncoder
from .others import OtherCollectors
from .rendering import AnyEncoder, Encoder, Renderer
from .scrape import (
    ASGIApplication,
    Receive,
    Response,
    Scope,
    Scrape,
    Send,
    in_thread,
    make_asgi_app,
    make_wsgi_app,
    plain,
    respond,
    scrape_from_asgi,
    scrape_from_wsgi,
    scrape_response,
)
from .server import Port, start_http_server, start_server, stop_server

__all__ = [
    "ASGIApplication",
    "AnyEncoder",
    "Encoder",
    "OtherCollectors",
    "Port",
    "ProtobufEncoder",
    "Receive",
    "Renderer",
    "Response",
    "Scope",
    "Scrape",
    "Send",
    "collect",
    "generate_latest",
    "in_thread",
    "make_asgi_app",
    "make_wsgi_app",
    "plain",
    "read_storage",
    "respond",
    "scrape_from_asgi",
    "scrape_from_wsgi",
    "scrape_response",
    "start_http_server",
    "start_server",
    "stop_server",
]

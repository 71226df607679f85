"""Metrics of HTTP requests and WebSocket connections, the same in every framework.

A framework finds method, route, status and the end of the body; it reports them to a `Tracker`.
"""

from .access import Access, warn_of_port
from .application import HTTPMetrics, exclude, excludes_method, is_excluded
from .asgi import AsyncBody, Channel, ExcludedChannel, asgi_path, track_asgi, track_websocket
from .hooks import Hooks, RequestRecord
from .names import METHODS, UNMATCHED
from .nesting import AROUND, Outer, expect_wsgi, join, outer_of
from .tracker import CLIENT_CLOSED_REQUEST, TRACKER, Match, ResponseStart, Tracker, content_length
from .wsgi import Body, track_wsgi

__all__ = [
    "AROUND",
    "CLIENT_CLOSED_REQUEST",
    "METHODS",
    "TRACKER",
    "UNMATCHED",
    "Access",
    "AsyncBody",
    "Body",
    "Channel",
    "ExcludedChannel",
    "HTTPMetrics",
    "Hooks",
    "Match",
    "Outer",
    "RequestRecord",
    "ResponseStart",
    "Tracker",
    "asgi_path",
    "content_length",
    "exclude",
    "excludes_method",
    "expect_wsgi",
    "is_excluded",
    "join",
    "outer_of",
    "track_asgi",
    "track_websocket",
    "track_wsgi",
    "warn_of_port",
]

"""The peer's function that finds the template of a route."""

from peer_routes import template as _get_route_name

__all__ = ["_get_route_name"]

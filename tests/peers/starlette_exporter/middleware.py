"""The peer's function that finds the template of a route."""

from peer_routes import template as get_matching_route_path

__all__ = ["get_matching_route_path"]

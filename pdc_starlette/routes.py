"""Finds the template of the route that a request took, as the framework writes it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any, NamedTuple

from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Host, Mount
from starlette.types import Scope

from pdc.http import METHODS, UNMATCHED, Match, asgi_path, excludes_method, is_excluded


class RouteFinder:
    """Finds templates in a flat table of an application's routes.

    The framework puts the endpoint that it took in ``scope["endpoint"]``, and the table has the templates that lead there.
    Where a middleware in between answered itself, or passed on a copy of the scope, the path is matched.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._table = _Table([])

    def forget(self) -> bool:
        """Forget the table if routes were added, removed or replaced since, wherever they are; return True then."""
        for live, copy in self._table.copies:
            if live != copy:  # which compares identities first
                self._table = _Table([])
                return True
        return False

    def find(self, scope: Scope) -> Match:
        """Find the route of a request that was handled; the request object of the match is for the caller to add."""
        endpoint, router = scope.get("endpoint"), scope.get("router")
        match = self._table.certain.get(id(endpoint))
        if match is not None and router is not None and router.routes is self._table.routes:
            return match
        if endpoint is None and router is not None:  # routing took place, and found nothing
            return Match(_frontend(scope))
        table = self._table
        owner = router or scope.get("app") or self._app
        is_unknown = endpoint is not None and id(endpoint) not in table.by_endpoint
        if is_unknown or getattr(owner, "routes", None) is not table.routes:
            routes = routes_of(owner)
            if is_unknown or routes is not table.routes:
                table = self._table = _Table(routes)
        known = table.by_endpoint.get(id(endpoint), ())
        if len(known) == 1:
            return known[0].match
        entry = _match(known or table.entries, scope)
        return Match(excluded=is_excluded(endpoint)) if entry is None else entry.match


def _outer_path(scope: Scope) -> str:
    """The path below the application that is outermost, also where a mount has taken some of it."""
    return asgi_path({**scope, "root_path": scope.get("app_root_path", scope.get("root_path", ""))})


def _host(scope: Scope) -> str:
    """The host as `Host` of Starlette reads it."""
    return Headers(raw=list(scope.get("headers", ()))).get("host", "").split(":")[0]


def _frontend(scope: Scope) -> str:
    """The template of FastAPI's static frontends, which have no endpoint but put the rest of the path in the scope."""
    below = scope.get("fastapi", {}).get("frontend_path")
    return UNMATCHED if below is None else _outer_path(scope).removesuffix(below).rstrip("/") + "/{path}"


def routes_of(app: Any) -> list[BaseRoute]:
    """The routes of an application or a mount, also behind middlewares; an empty list if it is not Starlette's."""
    found: list[BaseRoute] = []
    for _ in range(100):  # nobody stacks more middlewares
        routes = getattr(app, "routes", None)
        if isinstance(routes, list):
            found = routes
        app = getattr(app, "app", None)
        if found or app is None:
            break
    return found


def _lists(routes: list[BaseRoute]) -> Iterator[list[BaseRoute]]:
    """Yield the list of routes, and those of everything below it."""
    yield routes
    for route in routes:
        if isinstance(route, (Mount, Host)):
            yield from _lists(routes_of(route))
        elif hasattr(route, "original_router"):  # FastAPI's included router
            yield from _lists(route.original_router.routes)


def effective(routes: Iterable[Any]) -> Iterator[Any]:
    """Yield the routes, with the routes of included routers in their place: FastAPI keeps these apart since 0.137."""
    for route in routes:
        if hasattr(route, "effective_route_contexts"):
            yield from (context.starlette_route or context for context in route.effective_route_contexts())
        else:
            yield route


class _Entry(NamedTuple):
    match: Match
    endpoint: Any
    types: Collection[str]
    methods: Collection[str]
    patterns: tuple[re.Pattern[str], ...]
    """The patterns of the mounts around the route, then its own."""
    hosts: tuple[re.Pattern[str], ...] = ()
    """The patterns of the hosts around the route."""

    def matches(self, path: str, scope: Scope) -> bool:
        if self.hosts and not all(pattern.match(_host(scope)) for pattern in self.hosts):
            return False
        for pattern in self.patterns:
            found = pattern.match(path)
            if found is None:
                return False
            path = "/" + (found.groupdict().get("path") or "")  # the part that is left to the routes of a mount
        return True


class _Table:
    def __init__(self, routes: list[BaseRoute]) -> None:
        self.routes = routes
        self.copies = [(live, list(live)) for live in _lists(routes)]
        self.entries = list(_entries(routes))
        self.by_endpoint: dict[int, list[_Entry]] = {}
        for entry in self.entries:
            same = self.by_endpoint.setdefault(id(entry.endpoint), [])
            if entry.match.route != UNMATCHED:
                same.append(entry)
        self.certain = {endpoint: found[0].match for endpoint, found in self.by_endpoint.items() if len(found) == 1}
        """The matches of endpoints that only one route has."""
        self.certain.pop(id(None), None)


def _entries(routes: Iterable[Any], prefix: str = "", patterns: tuple[re.Pattern[str], ...] = ()) -> Iterator[_Entry]:
    for route in effective(routes):
        if isinstance(route, Host):
            for entry in _entries(routes_of(route), prefix, patterns):
                yield entry._replace(hosts=(route.host_regex, *entry.hosts))
            continue
        pattern = getattr(route, "path_regex", None)
        if pattern is None:
            continue
        template, chain = prefix + route.path, (*patterns, pattern)
        if isinstance(route, Mount):
            inside = routes_of(route)
            yield from _entries(inside, template, chain)
            nothing_else = UNMATCHED if inside else template or "/"
            match = Match(nothing_else, excluded=is_excluded(route.app), is_mount=not inside)
            yield _Entry(match, route.app, ("http", "websocket"), (), chain)
        else:
            kind = "http" if hasattr(route, "methods") else "websocket"
            match = Match(template, excluded=is_excluded(route.endpoint))
            if excluded := _excluded_methods(route.endpoint):
                yield _Entry(match._replace(excluded=True), route.endpoint, (kind,), excluded, chain)
            yield _Entry(match, route.endpoint, (kind,), route.methods or () if kind == "http" else (), chain)


def _excluded_methods(endpoint: Any) -> list[str]:
    """The HTTP methods of a class whose functions are excluded."""
    if not isinstance(endpoint, type) or is_excluded(endpoint):
        return []
    return [method for method in METHODS if excludes_method(endpoint, method)]


def _match(entries: Iterable[_Entry], scope: Scope) -> _Entry | None:
    """The first entry for this host and path, and for this method if there is one, as the framework decides."""
    kind, method, path = scope["type"], scope.get("method"), _outer_path(scope)
    other_method = None
    for entry in entries:
        if kind not in entry.types or not entry.matches(path, scope):
            continue
        if entry.methods and method not in entry.methods:
            other_method = other_method or entry
        elif entry.match.route != UNMATCHED or other_method is None:
            return entry
    return other_method

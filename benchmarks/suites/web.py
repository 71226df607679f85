"""The time that instrumentation adds to a request, in each framework."""

from __future__ import annotations

from benchmarks.contest import Case, Contender, Suite

BARE = "bare application"
BY_HAND = "by hand, prometheus_client in memory"
PEERS = {
    "Flask": {"prometheus_flask_exporter": "prometheus_flask_exporter"},
    "Django": {"django-prometheus": "django_prometheus"},
    "Starlette": {"starlette_exporter": "starlette_exporter", "fastapi-instrumentator": "instrumentator"},
}
PEERS["Django async"] = PEERS["Django"]
PEERS["FastAPI"] = PEERS["Starlette"]
MODULES = {"Flask": "flask_app", "Django": "django_app", "Django async": "django_app"}
MODULES.update({"Starlette": "starlette_app", "FastAPI": "starlette_app"})
KEYWORDS = {"Django async": {"asynchronous": True}, "FastAPI": {"fastapi": True}}


def _case(framework: str, routes: int, *, quick: bool) -> Case:
    instruments = {
        BARE: "bare",
        BY_HAND: "by_hand",
        "pdc, SQLite": "pdc_sqlite",
        "pdc, Redis": "pdc_redis",
        **PEERS[framework],
    }
    contenders = [
        Contender(name, MODULES[framework], {"instrument": instrument, "routes": routes, **KEYWORDS.get(framework, {})})
        for name, instrument in instruments.items()
    ]
    size = "1 route" if routes == 1 else f"the last of {routes} routes"
    name = f"{framework}, {size}"
    generations = 1 if quick else 5 if routes == 1 else 10  # the addition is small beside the cost of many routes
    return Case(name, contenders, reference=BY_HAND, baseline=BARE, measures=("cpu",), generations=generations)


def suite(*, quick: bool) -> Suite:
    """The suite; in a quick one, each contender has one process."""
    cases = [_case(framework, routes, quick=quick) for framework in MODULES for routes in (1, 300)]
    return Suite("web", "Time that instrumentation adds to a request", cases)

"""The Flask extension together with Flask-RESTful, Flask-RESTX and flask-smorest."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import flask_restful
import flask_restful.fields
import flask_restx
import flask_restx.fields
import marshmallow
import pytest
from flask import Flask
from flask.views import MethodView

from pdc.testing import value_of
from pdc_flask import PrometheusMetrics

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the release for the oldest Flask uses an option that marshmallow deprecates
    import flask_smorest

STATUS = {"status": lambda response: response.status_code}
both = pytest.mark.parametrize("rest", [flask_restful, flask_restx], ids=["restful", "restx"])


class Item:
    """An object that only a serializer can send."""

    def __init__(self, name: str) -> None:
        self.name = name


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    """An application with options, before its extensions."""
    app = Flask("shop")
    app.config.update(PDC_SQLITE_PATH=str(tmp_path / "metrics.db"), PDC_FLUSH_INTERVAL=0)
    app.config.update(API_TITLE="Shop", API_VERSION="1", OPENAPI_VERSION="3.0.2")
    app.logger.setLevel(logging.CRITICAL)
    yield app
    flask_restx.Api(Flask("empty"))  # RESTX keeps the last API, with all metrics of its application


@both
def test_a_measured_method_can_be_marshalled(app: Flask, rest: Any) -> None:
    """`marshal_with` above a decorator sees the object, and a label of the response its status."""
    metrics = PrometheusMetrics(app)

    class Items(rest.Resource):  # type: ignore[misc]  # neither of the two has types
        @rest.marshal_with({"name": rest.fields.String})  # type: ignore[untyped-decorator]  # as above
        @metrics.counter("visits", "Visits.", STATUS)
        def get(self) -> Any:
            return Item("tea"), 202

    rest.Api(app).add_resource(Items, "/items")
    answer = app.test_client().get("/items")
    assert (answer.json, answer.status_code) == ({"name": "tea"}, 202)
    assert value_of("visits_total", status="202") == value_of("visits_total") == 1


def test_a_measured_view_can_have_a_schema(app: Flask) -> None:
    """The `response` of flask-smorest above a decorator sees the object, and a label of the response its status."""
    metrics = PrometheusMetrics(app)
    blueprint = flask_smorest.Blueprint("items", __name__)

    @blueprint.route("/items")
    class Items(MethodView):
        @blueprint.response(201, marshmallow.Schema.from_dict({"name": marshmallow.fields.String()}))  # type: ignore[untyped-decorator]  # it has no types
        @metrics.counter("visits", "Visits.", STATUS)
        def get(self) -> Any:
            return Item("tea")

    flask_smorest.Api(app).register_blueprint(blueprint)
    answer = app.test_client().get("/items")
    assert (answer.json, answer.status_code) == ({"name": "tea"}, 201)
    assert value_of("visits_total", status="201") == value_of("visits_total") == 1


class BrokenError(Exception):
    """An error of the application."""


@both
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("testing", [True, False])
def test_exceptions_count_and_answers_do_not(app: Flask, rest: Any, first: bool, testing: bool) -> None:
    """An exception counts once, also one that the API answers, whichever is initialised first; 404 and 405 are none."""
    app.testing = testing
    if first:
        PrometheusMetrics(app)
    api = rest.Api(app, catch_all_404s=True) if rest is flask_restful else rest.Api(app)

    class Items(rest.Resource):  # type: ignore[misc]  # neither of the two has types
        def get(self, name: str) -> Any:
            if name == "missing":
                rest.abort(404)
            raise BrokenError(name) if name == "handled" else KeyError(name)

    api.add_resource(Items, "/items/<name>")
    if rest is flask_restx:
        api.errorhandler(BrokenError)(lambda error: ({"message": str(error)}, 418))
    else:
        app.register_error_handler(BrokenError, lambda error: (str(error), 418))
    if not first:
        PrometheusMetrics(app)
    client = app.test_client()
    assert [client.get("/items/missing").status_code, client.post("/items/tea").status_code] == [404, 405]
    assert client.get("/nowhere").status_code == 404
    assert value_of("http_exceptions_total") == 0
    assert client.get("/items/handled").status_code == (418 if testing or rest is flask_restx else 500)
    with pytest.raises(KeyError) if testing else nullcontext():
        assert client.get("/items/tea").status_code == 500
    for exception in ("BrokenError", "KeyError"):
        assert value_of("http_exceptions_total", exception=exception, route="/items/<name>") == 1
    assert value_of("http_exceptions_total") == 2


@both
@pytest.mark.parametrize("whole", [True, False])
def test_a_resource_can_be_excluded(app: Flask, rest: Any, whole: bool) -> None:
    """`exclude` works on a resource, and on one of its methods."""
    metrics = PrometheusMetrics(app)

    class Health(rest.Resource):  # type: ignore[misc]  # neither of the two has types
        def get(self) -> Any:
            return {}

        def post(self) -> Any:
            return {}

    metrics.exclude(Health if whole else Health.get)
    rest.Api(app).add_resource(Health, "/health")
    for method in ("GET", "HEAD", "POST"):
        assert app.test_client().open("/health", method=method).status_code == 200
    assert value_of("http_requests_total") == (0 if whole else 1)
    assert value_of("http_requests_total", method="POST") == (0 if whole else 1)

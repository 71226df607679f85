"""The guards of the metrics page beside their contract in every framework: challenges, values, ports, routes of FastAPI."""

from __future__ import annotations

from base64 import b64encode
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any

import pytest
import requests
from conftest import free_port, wait_until
from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.security import HTTPBasic
from http_applications import guard
from starlette.applications import Starlette
from starlette_applications import add, client, fine

from pdc.exposition import Scrape
from pdc.http import HTTPMetrics
from pdc.options import OptionError, Options
from pdc_starlette import instrument

BASIC, BEARER = "Basic YW5uOnNlY3JldA==", "Bearer token"  # of ann:secret


def metrics_of(folder: Path, **options: Any) -> HTTPMetrics:
    """The metrics of an application with these options."""
    return HTTPMetrics(Options.load({f"PDC_{name.upper()}": value for name, value in options.items()}, storage(folder)))


def storage(folder: Path) -> dict[str, str]:
    """The variables of a storage."""
    return {"PDC_SQLITE_PATH": str(folder / "metrics.db"), "PDC_FLUSH_INTERVAL": "0"}


@pytest.mark.parametrize(
    ("options", "challenge", "needed"),
    [
        ({"metrics_token": "token"}, "Bearer", "Bearer <token>"),
        (
            {"metrics_basic_auth": "ann:secret"},
            'Basic realm="metrics", charset="UTF-8"',
            "Basic <user:password in Base64>",
        ),
        (
            {"metrics_token": "token", "metrics_basic_auth": "ann:secret"},
            'Basic realm="metrics", charset="UTF-8", Bearer',
            "Basic <user:password in Base64> or Bearer <token>",
        ),
    ],
)
def test_a_401_challenges_for_all_that_is_accepted(
    options: dict[str, Any], challenge: str, needed: str, tmp_path: Path
) -> None:
    """The challenge and the text name each scheme that is accepted, and HEAD gets no body."""
    metrics = metrics_of(tmp_path, **options)
    answer = metrics.answer(Scrape())
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, challenge)
    assert answer.body.decode() == f"# metrics need the header Authorization: {needed}\n"
    assert metrics.answer(Scrape("HEAD")) == answer._replace(body=b"")


def test_schemes_are_case_insensitive_and_credentials_exact(tmp_path: Path) -> None:
    """A scheme may be in any case; the credentials must be those of that scheme."""
    metrics = metrics_of(tmp_path, metrics_token="token", metrics_basic_auth="ann:secret")
    accepted = (BASIC, BASIC.replace("Basic", "basic"), BASIC.replace("Basic", "BASIC"), BEARER, "bearer token")
    refused = (
        *("Bearer ann:secret", "Basic ann:secret", "Basic", "Basic ", f"{BASIC},{BASIC}", BASIC.rstrip("="), "Basic token"),
        *(f"Basic {b64encode(b'ann:').decode()}", f"Digest {BASIC[6:]}", "\ud800", f"Basic {'A' * 1_000_000}"),
    )
    statuses = {each: metrics.answer(Scrape(authorization=each)).status for each in (*accepted, *refused)}
    assert statuses == dict.fromkeys(accepted, 200) | dict.fromkeys(refused, 401)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_token_is_any_text(encoding: str, tmp_path: Path) -> None:
    """A token may have letters of any alphabet, however a client encodes them; a new line at its end is none of it."""
    metrics = metrics_of(tmp_path, metrics_token="schlüssel\n")
    sent = ["Bearer schlüssel", "Bearer schlüssel\n", "Bearer schl?ssel"]
    headers = [each.encode(encoding).decode("latin-1") for each in sent]
    assert [metrics.answer(Scrape(authorization=each)).status for each in headers] == [200, 401, 401]


def test_a_network_may_be_one_of_ipv4_in_ipv6(tmp_path: Path) -> None:
    """A client of IPv4 that a socket of IPv6 accepted is in the network, however that is written."""
    for networks in ("10.0.0.0/8", "::ffff:10.0.0.0/104"):
        metrics = metrics_of(tmp_path, metrics_networks=networks)
        clients = ("::ffff:10.1.2.3", "::ffff:11.1.2.3", "::1")
        assert [metrics.answer(Scrape(client=each)).status for each in clients] == [200, 403, 403]


def test_guards_and_registries_are_values_or_texts() -> None:
    """Networks are texts or objects of `ipaddress`; decorators and registries are objects or dotted paths."""
    for name, value, parsed in [
        ("METRICS_NETWORKS", "10.0.0.0/8, ::1", (ip_network("10.0.0.0/8"), ip_network("::1"))),
        ("METRICS_NETWORKS", [ip_address("10.0.0.1"), ip_network("::/0")], (ip_network("10.0.0.1"), ip_network("::/0"))),
        ("METRICS_NETWORKS", ip_network("10.0.0.0/8"), (ip_network("10.0.0.0/8"),)),
        ("METRICS_BASIC_AUTH", "ann:a:b ", "ann:a:b "),
        ("METRICS_TOKEN", " secret\n", "secret"),
        ("METRICS_DECORATOR", guard, guard),
        ("METRICS_DECORATOR", "shop.auth.guard", "shop.auth.guard"),
        ("REGISTRY", None, None),
        ("REGISTRY", "None", None),
        ("REGISTRY", "shop.metrics.REGISTRY", "shop.metrics.REGISTRY"),
    ]:
        assert getattr(Options.load({f"PDC_{name}": value}, {}), name.lower()) == parsed


@pytest.mark.parametrize(
    ("name", "values", "allowed"),
    [
        ("METRICS_NETWORKS", [(), "", " ", "10.0.0.1/8", "shop", [10], [b"\x0a\0\0\1"], None, 7], "networks such as"),
        ("METRICS_DECORATOR", ["", "guard", "shop.auth:guard", 7, None], "a callable, or the dotted path of one"),
        ("METRICS_BASIC_AUTH", ["", ":", "ann", "ann:", ":secret", " : ", b"ann:secret", None], "user:password, neither"),
        ("REGISTRY", ["", "registry", object(), 7], "a CollectorRegistry, the dotted path of one, or None"),
    ],
)
def test_wrong_guards_and_registries_are_refused(name: str, values: list[Any], allowed: str) -> None:
    """An empty or wrong guard is an error, as a setting and as a variable: it must not leave the page open."""
    for value in values:
        with pytest.raises(OptionError, match=f"PDC_{name} must be {allowed}") as refused:
            Options.load({f"PDC_{name}": value}, {})
        assert "secret" not in str(refused.value)
    for text in ("", " "):
        if name != "REGISTRY":
            with pytest.raises(OptionError, match=f"PDC_{name} must be "):
                Options.load({}, {f"PDC_{name}": text})


@pytest.mark.parametrize(
    ("option", "path", "reason"),
    [
        ("metrics_decorator", "shop_.auth.guard", "cannot be imported: No module named 'shop_'"),
        ("metrics_decorator", "os.guard", "cannot be imported: module 'os' has no attribute 'guard'"),
        ("metrics_decorator", "os.sep", "'os.sep', which is '/'"),
        ("metrics_decorator", "math.pi", "got 3.14"),
        ("registry", "os.path", "got <module"),
    ],
)
def test_a_path_that_leads_nowhere_is_refused_at_start(option: str, path: str, reason: str, tmp_path: Path) -> None:
    """The error names the option, the allowed values and the reason; programs without a page do not import the path."""
    with pytest.raises(OptionError, match=f"PDC_{option.upper()} must be .*{reason}"):
        metrics_of(tmp_path, **{option: path})
    Options.load({f"PDC_{option.upper()}": path}, storage(tmp_path)).setup()


def test_a_port_that_only_the_framework_guards_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log warns that a decorator, or dependencies, guard no port; it does not where another guard does."""
    port = f"127.0.0.1:{free_port()}"
    for guards in ({}, {"metrics_networks": "127.0.0.1"}, {"metrics_token": "a"}, {"metrics_basic_auth": "a:b"}):
        metrics_of(tmp_path, metrics_decorator=guard, metrics_port=port, **guards).begin_serving()
    instrument(FastAPI(), dependencies=[Depends(fine)], metrics_port=port)
    warnings = [each.partition("METRICS_PORT: ")[2] for each in caplog.messages if "every client may read" in each]
    rest = "guards only the page of the application; "
    assert [each.split(rest)[0] for each in warnings] == ["PDC_METRICS_DECORATOR ", "dependencies "]


def test_networks_guard_the_port(tmp_path: Path) -> None:
    """A client outside of the networks gets 403 from the port of its own, too."""
    port = free_port()
    metrics_of(tmp_path, metrics_port=f"127.0.0.1:{port}", metrics_networks="192.0.2.0/24").begin_serving()

    def ask() -> tuple[int, str] | None:
        try:
            answer = requests.get(f"http://127.0.0.1:{port}/metrics", headers={"X-Forwarded-For": "192.0.2.1"}, timeout=10)
        except requests.ConnectionError:
            return None
        return answer.status_code, answer.text

    assert wait_until(ask) == (
        403,
        "# metrics are not for clients at 127.0.0.1: it is in no network of PDC_METRICS_NETWORKS\n",
    )


def of_key(key: Annotated[str, Header(alias="X-Key")] = "") -> None:
    """A dependency that wants a key."""
    if key != "secret":
        raise HTTPException(403, "no key")


def answers(app: Any) -> list[int]:
    """The statuses of the page without and with the key."""
    web = client(app)
    return [
        web.request(method, "/metrics", headers=headers).status_code
        for headers in ({}, {"X-Key": "secret"})
        for method in ("GET", "HEAD", "OPTIONS", "POST")
    ]


def test_dependencies_of_fastapi_run_before_the_page(tmp_path: Path) -> None:
    """Dependencies answer instead of the page, can be overridden, and keep the page from counting and from the schema."""
    app = FastAPI()
    add(app, "/{anything:path}", fine)
    instrument(app, dependencies=[Depends(of_key)], sqlite_path=str(tmp_path / "metrics.db"))
    assert answers(app) == [403, 403, 403, 405, 200, 200, 200, 405]
    assert "/metrics" not in app.openapi()["paths"]
    app.dependency_overrides[of_key] = lambda: None
    assert answers(app)[:4] == [200, 200, 200, 405]
    assert "http_requests_total{" not in client(app).get("/metrics").text


def test_the_schema_of_fastapi_may_show_the_page(tmp_path: Path) -> None:
    """With `include_in_schema` the schema has the GET of the page, its tags and its security; dependencies of the app run."""
    app = FastAPI(dependencies=[Depends(of_key)])
    instrument(
        app,
        include_in_schema=True,
        tags=["monitoring"],
        dependencies=[Depends(HTTPBasic(auto_error=False))],
        sqlite_path=str(tmp_path / "metrics.db"),
    )
    (operation,) = app.openapi()["paths"]["/metrics"].items()
    assert operation[0] == "get"
    assert operation[1]["tags"] == ["monitoring"]
    assert operation[1]["security"] == [{"HTTPBasic": []}]
    assert [*operation[1]["responses"]["200"]["content"]] == ["text/plain"]
    assert answers(app) == [403, 403, 403, 405, 200, 200, 200, 405]


@pytest.mark.parametrize("options", [{"dependencies": [Depends(of_key)]}, {"include_in_schema": True}, {"tags": ["a"]}])
def test_dependencies_need_fastapi(options: dict[str, Any]) -> None:
    """Starlette has no dependencies: the error names the other guards."""
    with pytest.raises(
        TypeError, match=r"need an application of FastAPI, got <starlette.*guard its page with metrics_decorator"
    ):
        instrument(Starlette(), **options)

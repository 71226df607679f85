"""The metrics page of Django: settings, system checks and commands."""

from __future__ import annotations

import gzip
import importlib
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import django_project
import pytest
from conftest import ROOT
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command
from django.urls import include, path
from django_project import OURS, Send, Settings, scraped

import pdc
from pdc.options import OptionError
from pdc_django import conf, urls, views

# pytest finds these fixtures by their names here.
own_storage = django_project.own_storage
change = django_project.change
send = django_project.send


def test_the_page_is_not_counted(send: Send, change: Settings) -> None:
    """The metrics page never counts itself, whatever the method, also under a prefix."""
    change(ROOT_URLCONF=Prefixed)
    for method in ("GET", "HEAD", "OPTIONS"):
        assert send("/internal/metrics", method).status == 200
    assert send("/internal/metrics", "POST").status == 405
    assert b"http_requests_total{" not in send("/internal/metrics").body
    assert b'http_requests_in_progress{method="GET"} 0.0' in send("/internal/metrics").body


def test_the_page_negotiates_and_asks_for_the_token(send: Send, change: Settings) -> None:
    """The page answers in OpenMetrics and compressed when asked to, and with 401 without the token."""
    change(metrics_token="secret")
    assert send("/metrics").status == 401
    page = send("/metrics", Authorization="Bearer secret", Accept="application/openmetrics-text", Accept_Encoding="gzip")
    assert page.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert gzip.decompress(page.body).endswith(b"# EOF\n")


def test_the_page_needs_no_login_no_csrf_token_and_no_cache(send: Send, change: Settings) -> None:
    """Other middleware leaves the page alone."""
    change(
        MIDDLEWARE=[
            OURS,
            "django.middleware.cache.UpdateCacheMiddleware",
            "django.middleware.csrf.CsrfViewMiddleware",
            "django.middleware.cache.FetchFromCacheMiddleware",
        ]
    )
    before = send("/metrics").body
    send("/shop/tea/")
    assert send("/metrics").body != before
    assert send("/metrics", "POST").status == 405
    assert views.metrics.login_required is False  # type: ignore[attr-defined]  # set by Django


def test_a_storage_that_cannot_be_read_is_a_503(send: Send, change: Settings) -> None:
    """Without its storage the project answers requests, and the metrics page gives the reason."""
    change(sqlite_path="/nonexistent/metrics.db")
    assert send("/shop/tea/").body == b"tea"
    page = send("/metrics")
    assert page.status == 503
    assert b"/nonexistent/metrics.db" in page.body


def test_options_are_settings(send: Send, change: Settings) -> None:
    """Options are settings, and labels take Django's request."""
    change(namespace="shop", group_status=True, exclude_paths=["/stream"], labels={"shop": lambda request: request.GET["at"]})
    for url in ("/?at=north", "/stream"):
        send(url)
    assert scraped("shop_http_requests_total") == {("GET", "/", "north", "2xx"): 1.0}


def test_options_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, change: Settings) -> None:
    """Without a setting, the environment variable applies; in Django a misspelt one of its own options is an error, too."""
    monkeypatch.setenv("PDC_DJANGO_MODELS", "auth, contenttypes.ContentType")
    change(namespace="")
    assert conf.options().django_models == ("auth", "contenttypes.ContentType")
    monkeypatch.setenv("PDC_DJANGO_CACHE", "true")
    change(namespace="shop")
    with pytest.raises(OptionError, match=r"unknown environment variable PDC_DJANGO_CACHE; did you mean PDC_DJANGO_CACHES\?"):
        conf.options()


def test_wrong_options_stop_the_start(send: Send, change: Settings) -> None:
    """A handler with an unknown or wrong option is not made."""
    change(bucket=[1])
    with pytest.raises(OptionError, match=r"unknown option PDC_BUCKET; did you mean PDC_BUCKETS\?"):
        send("/")


def test_the_app_can_be_switched_off(send: Send, change: Settings) -> None:
    """With PDC_ENABLED false nothing is counted and there is no page."""
    change(enabled=False)
    assert send("/shop/tea/").body == b"tea"
    assert send("/metrics").status == 404
    change(enabled=True)
    assert scraped("http_requests_total") == {}


def test_the_middleware_needs_the_app(send: Send, change: Settings) -> None:
    """The error of the middleware without the app names the remedy."""
    change(INSTALLED_APPS=[])
    with pytest.raises(ImproperlyConfigured, match="needs 'pdc_django' in INSTALLED_APPS"):
        send("/")


class Prefixed:
    """A URLconf that has the page under a prefix."""

    urlpatterns = (path("internal/", include("pdc_django.urls")),)


class Empty:
    """A URLconf without the page."""

    urlpatterns = ()


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, []),
        ({"buckets": "wide"}, ["pdc_django.E001"]),
        ({"django_models": ["shop.Order", "auth"]}, ["pdc_django.E002"]),
        ({"MIDDLEWARE": [OURS, OURS]}, ["pdc_django.E003"]),
        ({"MIDDLEWARE": []}, ["pdc_django.W001"]),
        ({"MIDDLEWARE": [], "enabled": False}, []),
        ({"MIDDLEWARE": ["django_project.limiting", OURS]}, ["pdc_django.W002"]),
        ({"ROOT_URLCONF": Empty}, ["pdc_django.W003"]),
        ({"ROOT_URLCONF": Empty, "metrics_path": None}, []),
        ({"metrics_path": None}, ["pdc_django.W004"]),
    ],
)
def test_system_checks_name_each_fault(change: Settings, settings: dict[str, Any], found: list[str]) -> None:
    """`manage.py check` names each fault of the configuration, with a hint."""
    change(**settings)
    messages = [message for message in run_checks() if str(message.id).startswith("pdc_django")]
    assert [message.id for message in messages] == found
    assert all(message.hint for message in messages)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("max_series", "PDC_MAX_SERIES must be a whole number, at least 1, got 0."),
        ("max_serie", "unknown option PDC_MAX_SERIE; did you mean PDC_MAX_SERIES?"),
    ],
)
def test_a_wrong_option_is_quoted_by_its_check(change: Settings, name: str, reason: str) -> None:
    """The check names the wrong setting, the allowed values and the given one, or the setting that was meant."""
    change(**{name: 0})
    (message,) = run_checks()
    assert message.msg == f"The settings of pdc are wrong: {reason}"


def test_the_path_of_the_page_is_a_setting(change: Settings) -> None:
    """PDC_METRICS_PATH is read when the URLconf is made; None leaves the page out."""
    try:
        change(metrics_path="/internal/metrics")
        assert [str(route.pattern) for route in importlib.reload(urls).urlpatterns] == ["internal/metrics"]
        change(metrics_path=None)
        assert importlib.reload(urls).urlpatterns == []
    finally:
        change(metrics_path="/metrics")
        importlib.reload(urls)


def test_the_dashboard_is_not_counted_under_a_prefix(send: Send, change: Settings) -> None:
    """With PDC_DASHBOARD the URLconf has its page, which counts itself nowhere, and needs no login and no token of a form."""
    try:
        change(dashboard=True, ROOT_URLCONF=(path("internal/", include("pdc_django.urls")),))
        importlib.reload(urls)
        assert send("/internal/metrics/dashboard").body.startswith(b"<!DOCTYPE html>")
        assert send("/internal/metrics/dashboard?counts").body.startswith(b'{"at": ')
        assert b"http_requests_total{" not in send("/internal/metrics").body
        assert views.dashboard.login_required is False  # type: ignore[attr-defined]  # set by Django
        change(metrics_path=None)
        assert importlib.reload(urls).urlpatterns == []
    finally:
        change(dashboard=False, metrics_path="/metrics")
        importlib.reload(urls)


def test_commands_print_and_clear_the_metrics(send: Send, monkeypatch: pytest.MonkeyPatch) -> None:
    """`manage.py metrics` prints the page; `clear_metrics` asks, and deletes the metrics."""
    send("/")
    printed = io.StringIO()
    call_command("metrics", stdout=printed)
    assert scraped("http_requests_total", printed.getvalue()) == {("GET", "/", "200"): 1.0}
    monkeypatch.setattr("builtins.input", lambda _: "no")
    with pytest.raises(CommandError, match="nothing was deleted"):
        call_command("clear_metrics")
    monkeypatch.undo()
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(CommandError, match="agree with --no-input"):
        call_command("clear_metrics")
    call_command("clear_metrics", "--noinput", stdout=io.StringIO())
    assert scraped("http_requests_total") == {}


@pytest.mark.parametrize("command", [["metrics"], ["clear_metrics", "--noinput"]])
def test_commands_say_that_nothing_is_counted(change: Settings, command: list[str]) -> None:
    """With PDC_ENABLED false a command has no storage to show or to clear: it fails, with the reason."""
    pdc.shutdown()
    change(enabled=False)
    with pytest.raises(CommandError, match="nothing is counted: PDC_ENABLED is false"):
        call_command(*command)


@pytest.mark.parametrize("command", [["metrics"], ["clear_metrics", "--noinput"]])
def test_commands_fail_with_the_reason_of_the_storage(change: Settings, command: list[str]) -> None:
    """A command whose storage is down fails with the reason."""
    change(sqlite_path="/nonexistent/metrics.db")
    conf.http_metrics()
    with pytest.raises(CommandError, match=r"/nonexistent/metrics\.db"):
        call_command(*command)


@pytest.mark.parametrize("command", ["check", "metrics"])
def test_the_shop_is_managed(tmp_path: Path, command: str) -> None:
    """The example's manage.py passes its checks, and prints its metrics: no command declares those of requests."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(ROOT / "example_apps" / "django_app" / "manage.py"), command],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PDC_SQLITE_PATH": str(tmp_path / "shop.db")},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ("no issues" in done.stdout) if command == "check" else (done.stdout == "")
    pdc.setup(sqlite=tmp_path / "shop.db")
    assert b"http_request" not in pdc.generate_latest()

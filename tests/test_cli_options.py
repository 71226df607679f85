"""``pdc options``: the list of options, with the values of the environment."""

from __future__ import annotations

import json
import sys

import commands
import pytest
from commands import Pdc
from conftest import ROOT

command = commands.command
pytestmark = pytest.mark.parametrize("storage", ["sqlite"], indirect=True)


def test_an_option_has_its_meaning_and_its_value(command: Pdc, monkeypatch: pytest.MonkeyPatch) -> None:
    """An option shows its value with its source, its default, its meaning and the allowed values."""
    monkeypatch.setenv("PDC_FLUSH_INTERVAL", " 0.5 ")
    monkeypatch.setenv("PDC_NAMESPACE", "")
    done = command("options", at=None)
    assert (done.code, done.errors) == (0, "")
    for shown in (
        "PDC_FLUSH_INTERVAL=0.5  (from the environment; default: 1)\n    The time between two batches",
        "PDC_EXIT_TIMEOUT=2  (default)\n",
        "PDC_NAMESPACE  (not set)\n    The start of the names of HTTP metrics and of Django's metrics.\n    Allowed: letters,",
        "    The SQLite file that holds the metrics, metrics.db without any storage.\n",
    ):
        assert shown in done.output


@pytest.mark.parametrize("kind", ["text", "json"])
def test_no_secret_is_shown(kind: str, command: Pdc, monkeypatch: pytest.MonkeyPatch) -> None:
    """URLs, tokens and passwords are hidden, also in options that are no secrets."""
    monkeypatch.setenv("PDC_REDIS_URL", "redis://user:hush@localhost/0")
    monkeypatch.setenv("PDC_METRICS_TOKEN", "hush")
    monkeypatch.setenv("PDC_METRICS_BASIC_AUTH", "user:hush")
    monkeypatch.setenv("PDC_LABELS", "password=hush")
    monkeypatch.setenv("PDC_REDIS_PREFIX", "redis://user:\"hush' hush@localhost/0")
    done = command("options", "--format", kind, at=None)
    assert done.code == 0
    assert done.output.count("***") == 5
    assert "hush" not in done.output + done.errors


WRONG = [
    ("PDC_EXIT_TIMEOUT", "soon"),
    ("PDC_EXIT_TIMEOT", "1"),
    ("PDC_REDIS_URL", "localhost:6379"),
    ("PDC_REDIS_URL", "http://localhost"),
    ("PDC_REDIS_URL", "redis://localhost/shop"),
    ("PDC_SQLITE_PATH", "/"),
    ("PDC_METRICS_PORT", "tcp://10.0.0.1:9100"),
]


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_a_wrong_value_is_an_error_after_the_list(name: str, text: str, command: Pdc, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is not allowed, or a misspelt name, is an error beside a complete list."""
    monkeypatch.setenv(name, text)
    done = command("options", at=None)
    assert done.code == 2
    assert name in done.errors
    assert "PDC_ENABLED=true" in done.output


def test_options_are_json_with_those_of_django_where_asked_for(command: Pdc, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--django` adds the options of Django, and JSON has all that is known of each."""
    monkeypatch.setenv("PDC_DJANGO_CACHES", "yes")
    rows = {row["name"]: row for row in json.loads(command("options", "--django", "--format", "json", at=None).output)}
    assert rows["PDC_DJANGO_CACHES"] == {
        "name": "PDC_DJANGO_CACHES",
        "default": "false",
        "value": "yes",
        "source": "environment",
        "meaning": "Count and time cache operations.",
        "allowed": "true or false",
    }
    monkeypatch.setitem(sys.modules, "pdc_django.conf", None)
    assert "PDC_DJANGO_CACHES" not in command("options", at=None).output
    failed = command("options", "--django", at=None)
    assert (failed.code, failed.output) == (1, "")


def test_the_markdown_is_the_table_of_the_reference(command: Pdc) -> None:
    """`--format markdown` prints the table that the reference has."""
    table = command("options", "--format", "markdown", at=None).output
    assert table.startswith("| Option | Default | Meaning | Allowed |\n|---|---|---|---|\n| `PDC_REDIS_URL` |  |")
    assert table in (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")

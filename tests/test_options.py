"""The options of the extensions, from settings and the environment."""

from __future__ import annotations

import re
import sqlite3
import traceback
from contextlib import closing
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

import pdc
from pdc.options import OptionError, Options


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("REDIS_URL", "redis://localhost", "redis://localhost"),
        ("SQLITE_PATH", "a.db", "a.db"),
        ("REDIS_PREFIX", "shop", "shop"),
        ("REDIS_EXPIRE", "60", 60.0),
        ("REDIS_EXPIRE", "never", None),
        ("FLUSH_INTERVAL", "0.5", 0.5),
        ("EXIT_TIMEOUT", "0.5", 0.5),
        ("JOURNAL", "off", False),
        ("JOURNAL", "/var/lib/shop", "/var/lib/shop"),
        ("METRICS_PATH", "/m", "/m"),
        ("METRICS_PATH", "none", None),
        ("METRICS_PORT", "9100", ("0.0.0.0", 9100)),
        ("METRICS_PORT", "localhost:9100", ("localhost", 9100)),
        ("METRICS_PORT", "[::1]:9100", ("::1", 9100)),
        ("METRICS_TOKEN", "secret", "secret"),
        ("NAMESPACE", "shop", "shop"),
        ("BUCKETS", "0.1, 1,10", (0.1, 1.0, 10.0)),
        ("EXCLUDE_PATHS", "/health, /ready", ("/health", "/ready")),
        ("EXCLUDE_METHODS", "options, HEAD", ("OPTIONS", "HEAD")),
        ("COUNT_UNMATCHED", "no", False),
        ("GROUP_STATUS", "true", True),
        ("ENABLED", "off", False),
    ],
)
def test_an_option_comes_from_the_environment_or_the_settings(name: str, text: str, expected: object) -> None:
    """An option is parsed from an environment variable; a setting, text or value, precedes it."""
    read = getattr(Options.load({}, {f"PDC_{name}": text}), name.lower())
    assert read == expected
    assert getattr(Options.load({f"PDC_{name}": read}, {f"PDC_{name}": "!"}), name.lower()) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("REDIS_EXPIRE", 0),
        ("REDIS_EXPIRE", "soon"),
        ("FLUSH_INTERVAL", -1),
        ("FLUSH_INTERVAL", float("nan")),
        ("FLUSH_INTERVAL", True),
        ("EXIT_TIMEOUT", -1),
        ("JOURNAL", 7.5),
        ("METRICS_PATH", "metrics"),
        ("METRICS_PORT", "http"),
        ("METRICS_PORT", ":9100"),
        ("METRICS_PORT", 0),
        ("METRICS_PORT", 65536),
        ("METRICS_PORT", True),
        ("NAMESPACE", "a-b"),
        ("BUCKETS", []),
        ("BUCKETS", [2, 1]),
        ("BUCKETS", "a"),
        ("EXCLUDE_PATHS", [1]),
        ("EXCLUDE_PATHS", "health"),
        ("EXCLUDE_METHODS", ["GET /"]),
        ("EXCLUDE_METHODS", [1]),
        ("COUNT_UNMATCHED", "perhaps"),
        ("GROUP_STATUS", "perhaps"),
        ("ENABLED", None),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_what_is_allowed(name: str, value: object) -> None:
    """The error quotes the option, the value and the allowed values."""
    with pytest.raises(OptionError, match=rf"PDC_{name} must be .+, got {re.escape(repr(value))}"):
        Options.load({f"PDC_{name}": value}, {})


def test_an_unknown_setting_is_refused_with_the_nearest_name() -> None:
    """A misspelt option is an error that names the right one; settings of others are ignored."""
    with pytest.raises(OptionError, match="unknown option PDC_REDIS_ULR; did you mean PDC_REDIS_URL"):
        Options.load({"PDC_REDIS_ULR": "redis://localhost", "DEBUG": True}, {})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SQLITE", "SQLITE_PATH"),
        ("REDIS_ULR", "REDIS_URL"),
        ("REDIS", "REDIS_URL"),
        ("BUCKET", "BUCKETS"),
        ("TOKEN", "METRICS_TOKEN"),
        ("PORT", "METRICS_PORT"),
        ("FLUSH", "FLUSH_INTERVAL"),
    ],
)
def test_an_environment_variable_that_is_close_to_an_option_is_refused(name: str, meant: str) -> None:
    """A misspelt environment variable is an error that names the right one: its value would not be used."""
    message = rf"unknown environment variable PDC_{name}; did you mean PDC_{meant}\? Rename it, or remove it"
    with pytest.raises(OptionError, match=message):
        Options.load({}, {f"PDC_{name}": "1"})


def test_an_environment_variable_unlike_all_options_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """An unknown environment variable may belong to another program: the log names it, and all known ones."""
    Options.load({}, {"PDC_WORKSHOP": "1"})
    assert "the environment variable PDC_WORKSHOP means nothing to pdc; there are PDC_REDIS_URL" in caplog.text


def test_variables_of_kubernetes_and_of_other_extensions_are_ignored(caplog: pytest.LogCaptureFixture) -> None:
    """Kubernetes names services in variables, which may begin with PDC_; options of Django are for Django only."""
    environ = {
        "PDC_REDIS_SERVICE_HOST": "10.0.0.1",
        "PDC_REDIS_SERVICE_PORT": "6379",
        "PDC_REDIS_PORT": "tcp://10.0.0.1:6379",
        "PDC_REDIS_PORT_6379_TCP_ADDR": "10.0.0.1",
        "PDC_METRICS_SERVICE_HOST": "10.0.0.2",
        "PDC_METRICS_PORT": "tcp://10.0.0.2:9100",
        "PDC_DJANGO_MODELS": "shop",
    }
    assert Options.load({}, environ) == Options()
    assert Options.load({}, environ | {"PDC_METRICS_PORT": "9100"}).metrics_port == ("0.0.0.0", 9100)
    assert caplog.text == ""


@pytest.mark.parametrize("text", ["", " "])
def test_an_empty_environment_variable_is_not_given(text: str) -> None:
    """Every option keeps its default where its variable is empty, as in `PDC_REDIS_URL=`."""
    guards = ("metrics_token", "metrics_basic_auth", "metrics_networks", "metrics_decorator")  # they must not be empty
    names = [f"PDC_{option.name.upper()}" for option in fields(Options) if option.name not in guards]
    assert Options.load({}, dict.fromkeys(names, text)) == Options()


def test_a_prefix_without_a_redis_is_refused(tmp_path: Path) -> None:
    """A file has no prefix: one is an error, also without a storage; a storage that is already set up may have it."""
    message = "PDC_REDIS_PREFIX='shop' needs PDC_REDIS_URL, which is not given: "
    with pytest.raises(OptionError, match=f"{message}remove PDC_SQLITE_PATH"):
        Options(sqlite_path=str(tmp_path / "metrics.db"), redis_prefix="shop").setup()
    with pytest.raises(OptionError, match=rf"{message}metrics would go to metrics\.db"):
        Options(redis_prefix="shop").setup()
    pdc.setup(sqlite=tmp_path / "metrics.db")
    Options(redis_prefix="shop").setup()


def test_an_empty_token_in_the_environment_is_refused() -> None:
    """A token that is set but empty would admit every client: it is an error, not a missing token."""
    with pytest.raises(OptionError, match=r"PDC_METRICS_TOKEN must be .*, not empty, got an empty text$"):
        Options.load({}, {"PDC_METRICS_TOKEN": ""})


@pytest.mark.parametrize(
    ("name", "value", "got"),
    [
        ("METRICS_BASIC_AUTH", "", "an empty text"),
        ("METRICS_BASIC_AUTH", "s3cret", "a text without a colon"),
        ("METRICS_BASIC_AUTH", ":s3cret", "an empty user"),
        ("METRICS_BASIC_AUTH", "s3cret:", "an empty password"),
        ("METRICS_BASIC_AUTH", 5, "a value of type int"),
        ("LABELS", {"team": "a", "a b": "c"}, "{'team': 'a', 'a b': 'c'}: the label 'a b'"),
    ],
)
def test_a_wrong_value_is_shown_with_its_fault(name: str, value: Any, got: str) -> None:
    """The error names the fault of a secret, which it does not quote, and the wrong label."""
    with pytest.raises(OptionError, match=f", got {got}$"):
        Options.load({f"PDC_{name}": value}, {})


@pytest.mark.parametrize("name", ["PDC_REDIS_URL", "PDC_SQLITE_PATH", "PDC_METRICS_TOKEN"])
def test_an_empty_setting_is_refused(name: str) -> None:
    """A setting that is given but empty is an error: the program would run with another value."""
    with pytest.raises(OptionError, match=f"{name} must be "):
        Options.load({name: ""}, {})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PDC_METRICS_TOKEN", b"s3cret"),
        ("PDC_METRICS_TOKEN", " "),
        ("PDC_REDIS_URL", b"redis://:s3cret@localhost"),
        ("PDC_REDIS_URL", ["redis://:s3cret@localhost"]),
        ("PDC_REDIS_URL", {"password": "s3cret"}),
        ("PDC_SQLITE_PATH", "redis://:s3cret@localhost"),
        ("PDC_SQLITE_PATH", "redis:/:s3cret@localhost"),
        ("PDC_REDIS_EXPIRE", "redis://:s3cret@localhost"),
        ("PDC_REDIS_EXPIRE", 'redis://:a"s3cret s3cret@localhost'),
        ("PDC_METRICS_PATH", {"token": "s3cret"}),
    ],
)
def test_a_wrong_value_is_shown_without_secrets(name: str, value: Any) -> None:
    """The error names the option and the allowed values; neither it nor its cause quotes a token or a password."""
    with pytest.raises(OptionError, match=f"{name} must be .*, got ") as refused:
        Options.load({name: value}, {})
    assert "s3cret" not in "".join(traceback.format_exception(refused.value)).replace(repr(value), "")
    assert "s3cret" not in str(refused.value)
    assert refused.value.__context__ is None


def test_two_storages_are_refused_without_showing_the_url() -> None:
    """A Redis URL, which may hold a password, and a SQLite path exclude each other."""
    with pytest.raises(OptionError, match="both given") as refused:
        Options.load({"PDC_REDIS_URL": "redis://:secret@localhost", "PDC_SQLITE_PATH": "a.db"}, {})
    assert "secret" not in str(refused.value)


def test_a_storage_that_cannot_be_used_is_refused_by_its_option(tmp_path: Path) -> None:
    """A URL or a path that no storage can have is an error at start-up, which names the option and no password."""
    with pytest.raises(OptionError, match=r"^PDC_REDIS_URL: cannot use the URL 'redis://\*\*\*': ") as refused:
        Options(redis_url="redis://:s3cret@h:port").setup()
    assert "s3cret" not in str(refused.value)
    with pytest.raises(OptionError, match=r"^PDC_SQLITE_PATH: .* takes the path of a file, got that of a folder or a device$"):
        Options(sqlite_path=str(tmp_path)).setup()


def test_a_storage_that_is_replaced_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A process has one storage: options that replace another one's are logged, options of the same one are not."""
    for name in ("a.db", "a.db", "b.db"):
        Options(sqlite_path=str(tmp_path / name)).setup()
    expected = (
        f"the metrics of this process go to SQLite {tmp_path / 'b.db'} from now on, no longer to SQLite {tmp_path / 'a.db'}"
    )
    assert caplog.messages == [expected]


def test_a_storage_that_the_application_chose_is_kept(tmp_path: Path) -> None:
    """Options without a storage do not replace the one of an earlier `setup`."""
    pdc.setup(sqlite=tmp_path / "chosen.db")
    Options().setup()
    assert (tmp_path / "chosen.db").samefile(pdc.get_sqlite_conn().execute("PRAGMA database_list").fetchone()[2])


def test_a_program_without_a_framework_is_set_up_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: CollectorRegistry
) -> None:
    """`setup_from_environ` uses the storage that variables name, and a keyword before its variable."""
    monkeypatch.setenv("PDC_SQLITE_PATH", str(tmp_path / "named.db"))
    monkeypatch.setenv("PDC_FLUSH_INTERVAL", "60")
    pdc.setup_from_environ()
    hits = pdc.Counter("hits", "Hits.", registry=registry)
    hits.inc()
    with closing(sqlite3.connect(tmp_path / "named.db")) as reader:
        value = "SELECT value FROM pdc_metrics WHERE metric_key = 'hits' AND subkey = '_total:{}'"
        pdc.setup_from_environ(flush_interval=0)
        hits.inc()
        assert reader.execute(value).fetchone() == (2.0,)
        pdc.setup_from_environ()
        hits.inc()
        assert reader.execute(value).fetchone() == (2.0,)


def test_a_program_without_a_framework_writes_to_the_working_folder(
    tmp_path: Path, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`setup_from_environ` makes metrics.db where no variable names a storage, and refuses options that do not exist."""
    for name in ("PDC_REDIS_URL", "PDC_SQLITE_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match="unknown option PDC_FLUSH; did you mean"):
        pdc.setup_from_environ(flush=0)
    pdc.setup_from_environ()
    pdc.Counter("runs", "Runs so far.", registry=registry).inc()
    pdc.flush()
    assert (tmp_path / "metrics.db").is_file()

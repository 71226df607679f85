"""The command line: what is stored in words, as text, and away; errors and terminals."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
import pytest
from click.shell_completion import ShellComplete
from commands import COMMAND, ENVIRON, Pdc, Terminal, place
from conftest import RedisServer
from messages import rows
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.parser import text_string_to_metric_families

import pdc
from pdc.cli.app import COMMANDS, app
from pdc.cli.words import Selector, duration, quantile, spelled

command, shop, terminal = commands.command, commands.shop, commands.terminal


@pytest.mark.usefixtures("shop")
def test_show_lists_all_metrics(command: Pdc) -> None:
    """Each metric has its type, its series, its value in short, the last write and its help; the processes are counted."""
    done = command("show")
    assert [row[:4] + row[5:] for row in done.rows()] == [
        ["build", "info", "1", '{version="1"}', "Version."],
        ["busy", "gauge", "1", "3", "Busy tills."],
        ["door", "stateset", "1", "shut", "The door."],
        ["orders", "counter", "2", "42", "Orders by till."],
        ["wait_seconds", "histogram", "1", "4 x 1.5", "Time in the queue."],
    ]
    assert all(re.fullmatch(r"\d+ (s|ms) ago", row[4]) for row in done.rows())
    assert done.output.startswith("Metric\tType\tSeries\tValue\tWritten\tHelp\n")
    assert "5 metrics, 1 process alive of 1" in done.errors
    assert done.code == 0


@pytest.mark.parametrize(
    ("values", "shown"),
    [((0.0, 0.0), "0"), ((1.0, 2.5), "1 to 2.5"), ((1795738123.25,), "1795738123"), ((1e20, 1e20), "1e+20")],
)
def test_show_has_the_range_of_a_gauge(values: tuple[float, ...], shown: str, storage: dict[str, Any], command: Pdc) -> None:
    """The range of one value is that value, and a time has all of its seconds."""
    pdc.setup(**storage)
    gauge = pdc.Gauge("level", "Level.", ["tank"], registry=None)
    for tank, value in enumerate(values):
        gauge.labels(str(tank)).set(value)
    assert [row[:4] for row in command("show").rows()] == [["level", "gauge", str(len(values)), shown]]


def test_show_hints_at_other_prefixes(redis_server: RedisServer, command: Pdc) -> None:
    """Where no metric has the prefix, a line names the command that lists the other ones."""
    pdc.setup(redis=redis_server.url, redis_prefix="shop")
    pdc.Counter("orders", "Orders.", registry=None).inc()
    hint = "no metric has this prefix: `pdc check` lists the other prefixes"
    for prefix, is_hinted in (("shop", False), ("shpo", True)):
        done = command("show", "--redis", redis_server.url, "--prefix", prefix, at=None)
        assert (done.code, hint in done.errors) == (0, is_hinted)


def test_get_shows_the_series_of_a_metric(shop: dict[str, Any], command: Pdc) -> None:
    """A metric, also by the name of a sample, shows each series, and the processes that wrote it."""
    done = command("get", "orders_total")
    assert "orders: counter. Orders by till." in done.output
    rows = done.rows()
    assert [row[:2] for row in rows[:2]] == [['{till="1"}', "2"], ['{till="2"}', "40"]]
    assert rows[-1][0].startswith(f"{os.getpid()}-")
    assert rows[-1][2] == "alive"
    assert ("It expires within" in done.output) == ("redis" in shop)
    assert command("get", 'orders{till="2"}').rows()[0][:2] == ['{till="2"}', "40"]


def test_get_names_series_that_there_are(storage: dict[str, Any], command: Pdc, registry: CollectorRegistry) -> None:
    """Labels that no series has are an error with the first series."""
    pdc.setup(**storage)
    orders = pdc.Counter("orders", "Orders.", ["till"], registry=registry)
    for till in range(1, 5):
        orders.labels(str(till)).inc()
    first = ", ".join(f'{{till="{till}"}}' for till in (1, 2, 3))
    expected = """pdc: metric 'orders' has no series with the labels {till="9"}; """
    done = command("get", 'orders{till="9"}')
    assert (done.code, done.errors) == (1, f"{expected}it has 4 series: {first} and 1 more\n")
    done = command("get", 'orders{till="9"}', "--raw")
    assert (done.code, done.errors) == (1, f"{expected}without them, --raw shows all fields\n")


@pytest.mark.usefixtures("shop")
def test_get_shows_quantiles_and_values_of_processes(command: Pdc) -> None:
    """A histogram has its quantiles, as Prometheus computes them; a gauge per process the value of each, and its lease."""
    assert command("get", "wait_seconds").rows()[0][1:7] == ["4", "6", "1.5", "1", "2", "2"]
    busy = command("get", "busy")
    assert "A process counts for 15 s after it was last seen." in busy.output
    (own,) = [row for row in busy.rows() if len(row) == 5 and row[0].startswith(f"{os.getpid()}-")]
    assert (own[2], own[4]) == ("3", "alive")


@pytest.mark.usefixtures("shop")
def test_get_raw_shows_the_stored_fields(command: Pdc) -> None:
    """With `--raw` come the fields as they are; with labels those of these series."""
    fields = dict(row[:2] for row in command("get", "orders", "--raw").rows())
    assert json.loads(fields["#meta"])["name"] == "orders"
    assert float(fields['_total:{"till":"2"}']) == 40
    assert any(field.startswith("#mark:") for field in fields)
    chosen = command("get", 'orders{till="1"}', "--raw").rows()
    assert [row[0] for row in chosen] == ['_created:{"till":"1"}', '_total:{"till":"1"}']


@pytest.mark.usefixtures("shop")
def test_dump_writes_every_format(command: Pdc, tmp_path: Path) -> None:
    """The text is that of a scrape of the same metrics, OpenMetrics and protobuf can be parsed, and so can JSON."""
    stored = pdc.generate_latest().decode()
    assert command("dump").output == stored
    families = {
        family.name: family for family in text_string_to_metric_families(command("dump", "--format", "openmetrics").output)
    }
    assert [sample.value for sample in families["orders"].samples if sample.name == "orders_total"] == [2, 40]
    assert command("dump", "--format", "protobuf", "-o", str(tmp_path / "metrics.pb")).code == 0
    assert ("orders_total", (("till", "2"),), "value", "40.0") in rows((tmp_path / "metrics.pb").read_bytes())
    dumped = {family["name"]: family for family in json.loads(command("dump", "--format", "json").output)}
    assert dumped["wait_seconds"]["type"] == "histogram"
    assert {"name": "orders_total", "labels": {"till": "2"}, "value": 40.0} in dumped["orders"]["samples"]


@pytest.mark.usefixtures("shop")
def test_dump_replaces_a_file_at_once(command: Pdc, tmp_path: Path) -> None:
    """A file gets its content in one step, with the rights of a new file, and nothing else is left in the folder."""
    path = tmp_path / "out" / "pdc.prom"
    path.parent.mkdir()
    path.write_text("old")
    assert command("dump", "-o", str(path)).output == ""
    assert path.read_text() == pdc.generate_latest().decode()
    assert [each.name for each in path.parent.iterdir()] == ["pdc.prom"]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    missing = tmp_path / "missing" / "pdc.prom"
    done = command("dump", "-o", str(missing))
    assert (done.code, done.errors) == (1, f"pdc: cannot write {missing}: No such file or directory\n")


@pytest.mark.usefixtures("shop")
@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_dump_writes_into_a_pipe_and_through_a_link(command: Pdc, tmp_path: Path) -> None:
    """A pipe, as /dev/stdout may be, stays one, and gets the content; of a link the file is replaced that it names."""
    pipe, link, file = (tmp_path / name for name in ("pipe", "link", "file"))
    os.mkfifo(pipe)
    with os.fdopen(os.open(pipe, os.O_RDONLY | os.O_NONBLOCK), "rb") as reader:
        assert command("dump", "-o", str(pipe)).code == 0
        assert reader.read() == pdc.generate_latest()
    assert pipe.is_fifo()
    link.symlink_to(file)
    assert command("dump", "-o", str(link)).code == 0
    assert link.is_symlink()
    assert file.read_bytes() == pdc.generate_latest()


def test_numbers_without_end_are_texts_in_json(storage: dict[str, Any], registry: CollectorRegistry, command: Pdc) -> None:
    """JSON has no infinite numbers: they are the texts that the text format has."""
    pdc.setup(**storage)
    gauge = pdc.Gauge("level", "Level.", ["at"], registry=registry)
    for name, value in (("a", float("inf")), ("b", float("-inf")), ("c", float("nan"))):
        gauge.labels(name).set(value)
    (family,) = json.loads(command("dump", "--format", "json").output)
    assert [sample["value"] for sample in family["samples"]] == ["+Inf", "-Inf", "NaN"]


@pytest.mark.usefixtures("shop")
def test_reading_writes_nothing(command: Pdc) -> None:
    """The commands that show leave every field as it is, also the marks of processes."""
    storage = pdc.config.DEFAULT.required()
    before = storage.read().metrics
    for arguments in (["show"], ["get", "orders"], ["dump"], ["check"]):
        assert command(*arguments).code == 0
    assert storage.read().metrics == before


@pytest.mark.usefixtures("shop")
def test_delete_removes_series_or_a_metric(command: Pdc) -> None:
    """Series with the labels go, then the whole metric, and others stay; a process that counts on begins again."""
    before = pdc.config.DEFAULT.required().read().metrics["orders"]
    assert "deleted 1 series of orders" in command("delete", 'orders{till="1"}', "--yes").errors
    after = pdc.config.DEFAULT.required().read().metrics["orders"]
    assert {field for field in before if field not in after} == {'_created:{"till":"1"}', '_total:{"till":"1"}'}
    assert "deleted the metric wait_seconds" in command("delete", "wait_seconds", "--yes").errors
    assert [row[0] for row in command("show").rows()] == ["build", "busy", "door", "orders"]
    pdc.Counter("orders", "Orders by till.", ["till"], registry=None).labels("1").inc(5)
    assert 'orders_total{till="1"} 5.0' in pdc.generate_latest().decode()


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_a_deleted_series_leaves_the_expiry_of_its_metric(redis_server: RedisServer, command: Pdc) -> None:
    """Where metrics never expire, a command that deletes a series makes none that does."""
    pdc.setup(redis=redis_server.url, redis_prefix="shop", redis_expire=None)
    pdc.Counter("orders", "Orders.", ["till"], registry=None).labels("1").inc()
    at = {"redis": redis_server.url, "redis_prefix": "shop"}
    assert command("delete", 'orders{till="1"}', "--yes", at=at).code == 0
    with redis_server.client() as client:
        assert client.ttl("prometheus_shop_orders") == -1


@pytest.mark.usefixtures("shop")
def test_delete_refuses_what_is_not_there(command: Pdc) -> None:
    """An unknown metric, label or series is an error that names the known ones, and nothing is deleted."""
    for selector, reason in (
        ("order", "has no metric 'order'; did you mean orders?"),
        ('orders{shop="1"}', "metric 'orders' has the labels till, got shop"),
        ('orders{till="3"}', """no series with the labels {till="3"}; it has 2 series: {till="1"}, {till="2"}"""),
    ):
        done = command("delete", selector, "--yes")
        assert (done.code, done.errors.count("\n")) == (1, 1)
        assert reason in done.errors
    assert len(command("show").rows()) == 5


@pytest.mark.usefixtures("shop")
def test_clear_deletes_all_of_one_prefix(command: Pdc) -> None:
    """All metrics go; without `--yes` and without a terminal to ask on, nothing does."""
    done = command("clear")
    assert (done.code, len(command("show").rows())) == (2, 5)
    assert "agree with --yes" in done.errors
    assert "deleted 5 metrics" in command("clear", "-y").errors
    assert command("show").rows() == []


WRONG = [
    (["shw"], "there is no command 'shw'; did you mean 'show'? (see pdc --help)"),
    (["nonsense"], "there is no command 'nonsense' (see pdc --help)"),
    (["show", "--nonsense"], "No such option"),
    (["get"], "Missing argument 'METRIC'"),
    (["get", "a{b"], "expected a metric such as hits"),
    (["get", 'a{b="1"} 5'], "expected a metric such as hits"),
    (["show", "--sqlite", "a.db", "--redis", "redis://h"], "expected one of --redis and --sqlite, got both"),
    (["show", "--redis", "redis://:secret@h:x/0"], "--redis: cannot use the URL 'redis://***': expected one like redis://"),
    (
        ["show", "--redis", "localhost:6379"],
        "--redis: cannot use the URL 'localhost:6379': did you mean redis://localhost:6379?",
    ),
    (["show", "--redis", "localhost"], "--redis: cannot use the URL 'localhost': did you mean redis://localhost?"),
    (["show", "--redis", "10.0.0.1/2"], "--redis: cannot use the URL '10.0.0.1/2': did you mean redis://10.0.0.1/2?"),
    (
        ["copy", "localhost:6379", "a.db"],
        "FROM: cannot use the URL 'localhost:6379': did you mean redis://localhost:6379?",
    ),
    (["copy", "none.db", "a.db"], "/none.db: FROM is the path of a SQLite file that is there, or a URL of Redis"),
    (["show", "redis://:secret@h"], "Got unexpected extra argument (redis://***"),
    (["get", "redis://:secret@h"], "expected a metric such as hits"),
    (["serve", "--port", "redis://:secret@h"], "'--port': expected a whole number from 0 to 65535, got 'redis://***"),
    (["serve", "--port", "abc"], "'--port': expected a whole number from 0 to 65535, got 'abc'"),
    (["serve", "--port", "65536"], "'--port': expected a whole number from 0 to 65535, got '65536'"),
    (["show", "--sqlite", "redis://:secret@h"], "PDC_SQLITE_PATH must be the path of a file, no URL"),
    (["show", "--sqlite", "a.db", "--prefix", "p"], "/a.db: name the storage with --redis URL or --sqlite PATH"),
    (["show", "--sqlite", "."], "--sqlite: setup(sqlite='.') takes the path of a file, got that of a folder"),
    (["copy", ".", "a.db"], "FROM: setup(sqlite='.') takes the path of a file, got that of a folder"),
    (["show"], "/metrics.db: name the storage with --redis URL or --sqlite PATH"),
    (["top"], "it needs a terminal"),
]


@pytest.mark.parametrize(("arguments", "reason"), WRONG, ids=lambda each: " ".join(each) if isinstance(each, list) else "")
@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_an_error_is_one_line(arguments: list[str], reason: str, command: Pdc) -> None:
    """A wrong call and a failure are one line without traceback and secrets; the exit code tells them apart."""
    done = command(*arguments, at=None)
    assert done.output == ""
    assert done.errors.startswith("pdc: ")
    assert done.errors.count("\n") == 1
    assert reason in done.errors
    assert "secret" not in done.errors
    assert done.code == (1 if "there is no file" in done.errors else 2)


def test_get_tells_zeros_from_numbers_below_zero(storage: dict[str, Any], registry: CollectorRegistry, command: Pdc) -> None:
    """Quantiles of a native histogram among zeros are zero, also where it has negative numbers; it has no sum then."""
    pdc.setup(**storage)
    drift = pdc.Histogram("drift", "Drift.", buckets=(), native=True, registry=registry)
    for value in (*[-0.28] * 3, *[0.0] * 40, *[0.5] * 2):
        drift.observe(value)
    ((_, count, total, mean, *quantiles, _),) = [row for row in command("get", "drift").rows() if row[0] == "-"]
    assert (count, total, mean) == ("45", "-", "-")
    assert [round(float(each), 3) for each in quantiles] == [0.0, 0.0, 0.491]
    assert command("show").rows()[0][:4] == ["drift", "histogram", "1", "45"]
    wide = pdc.Histogram("wide", "W.", buckets=(), native=pdc.Native(2, zero_threshold=1), registry=registry)
    for number in range(500):
        wide.observe(-2 + number / 500)
    wide.observe(0)
    ((*_, median, _, _, _),) = [row for row in command("get", "wide").rows() if row[0] == "-"]
    assert float(median) == pytest.approx(-1.5, abs=0.01)


def test_quantiles_below_zero_are_those_of_prometheus() -> None:
    """Where the first bound is below 0, numbers under it are taken for it, as `histogram_quantile` does."""
    buckets = [(-2.0, 2.0), (-1.0, 4.0), (math.inf, 4.0)]
    assert [quantile(each, buckets) for each in (0.1, 0.5, 0.75)] == [-2.0, -2.0, -1.5]


@pytest.mark.parametrize("words", ["pdc foo ", "pdc sho"])
def test_completion_of_an_unknown_command_is_silent(words: str, tmp_path: Path) -> None:
    """TAB after a mistyped word shows no error."""
    environ = {**ENVIRON, "_PDC_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    done = subprocess.run(COMMAND, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_the_environment_names_the_storage(shop: dict[str, Any], command: Pdc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without options PDC_... name the storage, as in `setup_from_environ`; an option goes before them."""
    monkeypatch.setenv("PDC_SQLITE_PATH", shop["sqlite"])
    assert len(command("show", at=None).rows()) == 5
    monkeypatch.delenv("PDC_SQLITE_PATH")
    monkeypatch.setenv("PDC_REDIS_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("PDC_REDIS_PREFIX", "shop")
    done = command("show", at=None)
    assert (done.code, done.errors.count("\n")) == (1, 1)
    assert "Connection refused" in done.errors
    assert len(command("show", "--sqlite", shop["sqlite"], at=None).rows()) == 5
    monkeypatch.setenv("PDC_REDIS_EXPIRE", "soon")
    assert "PDC_REDIS_EXPIRE must be" in command("show", at=None).errors


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_every_command_has_help_with_an_example(name: str, command: Pdc) -> None:
    """The help of each command fits a terminal, and has an example that its parser accepts."""
    done = command(name, "--help", at=None)
    assert done.code == 0
    assert max(map(len, done.output.splitlines())) <= 100
    (example, *_) = re.findall(rf"^    (?:\w+=\S+ )?pdc {name}\b(.*)$", done.output, re.MULTILINE)
    words = [word.strip("'") for word in example.split("|")[0].split()]
    made = app.get_command(None, name)  # type: ignore[arg-type] # it needs no context
    assert made is not None
    made.make_context(name, words)


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_the_help_lists_the_commands(command: Pdc) -> None:
    """Without arguments the help appears, and no summary is cut."""
    done = command(at=None)
    listed = re.findall(r"^  ([a-z]+)  +[A-Z].*\.$", done.output, re.MULTILINE)
    assert listed == [*COMMANDS]
    assert command("--version", at=None).output.startswith("pdc 3.")


def test_without_the_libraries_one_line_names_the_extra(tmp_path: Path) -> None:
    """Where the extra is not installed, `python -m pdc` says how to install it."""
    source = "import sys; sys.modules['rich'] = None; import runpy; runpy.run_module('pdc', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source], cwd=tmp_path, env=ENVIRON, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "pdc: the command line needs click and rich: pip install 'prometheus-distributed-client[cli]'\n"


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_without_the_driver_one_line_names_its_extra(command: Pdc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where redis-py is not installed, a command on Redis says how to install it."""
    monkeypatch.setitem(sys.modules, "pdc.storage.redis", None)
    done = command("show", "--redis", "redis://localhost", at=None)
    assert (done.code, done.output) == (1, "")
    assert done.errors == "pdc: setup(redis=...) needs redis-py: pip install 'prometheus-distributed-client[redis]'\n"


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    """The reader of a pipe may end at any time, as `head` does: there is no message."""
    pdc.setup(sqlite=tmp_path / "metrics.db", flush_interval=60)
    counter = pdc.Counter("orders", "Orders.", ["till"], registry=None)
    for number in range(100):
        counter.labels(str(number).zfill(2000)).inc()
    pdc.flush()
    writer = [*COMMAND, "dump", "--sqlite", str(tmp_path / "metrics.db")]
    with subprocess.Popen(writer, env=ENVIRON, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "# HELP orders_total Orders.\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(20) == 0


def test_a_closed_or_full_output_is_no_traceback(tmp_path: Path) -> None:
    """A command does its work where nobody wants its output; output that cannot be written is an error of one line."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    pdc.Counter("orders", "Orders.", registry=None).inc()
    show = " ".join(["exec", *COMMAND, "show", "--sqlite", str(tmp_path / "metrics.db")])
    for redirection, code, errors in ((">&- <&-", 0, r"SQLite .*: 1 metric, .*\n"), (">/dev/full", 1, r"pdc: .*No space.*\n")):
        done = subprocess.run(f"{show} {redirection}", shell=True, env=ENVIRON, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (code, "")
        assert re.fullmatch(errors, done.stderr)


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_a_table_fits_a_narrow_terminal(shop: dict[str, Any], terminal: Callable[..., Terminal]) -> None:
    """On a terminal of 40 columns no line is longer, nothing is cut away, and with NO_COLOR there are no colours."""
    shown = terminal("show", *place(shop), columns=40, NO_COLOR="1")
    assert shown.end() == 0
    lines = shown.plain.splitlines()
    assert max(map(len, lines[:-3])) <= 40
    assert "…" not in shown.plain
    assert not re.search(r"\x1b\[[0-9;]*[34][0-7]m", shown.seen)


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_a_terminal_without_a_character_gets_its_code(storage: dict[str, Any], terminal: Callable[..., Terminal]) -> None:
    """Texts that the encoding of the terminal does not have are spelled out."""
    pdc.setup(**storage)
    pdc.Counter("orders", "Gr\xf6\xdfe.", registry=None).inc()
    shown = terminal("show", *place(storage), PYTHONIOENCODING="ascii")
    assert shown.end() == 0
    assert r"Gr\xf6\xdfe." in shown.plain


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_a_question_is_asked_on_a_terminal(shop: dict[str, Any], terminal: Callable[..., Terminal]) -> None:
    """`clear` asks: a no keeps all, a yes deletes all, and Ctrl-C leaves without a traceback."""
    for keys, code, count in (("n\n", 1, 5), ("", 130, 5), ("y\n", 0, 0)):
        asked = terminal("clear", *place(shop))
        assert "Delete 5 metrics from SQLite" in asked.wait_for("[y/N]: ")
        asked.type(keys)
        assert (asked.end() if keys else asked.interrupt()) == code
        assert "Traceback" not in asked.plain
        assert len(pdc.config.DEFAULT.required().read().metrics) == count


@pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
def test_stored_texts_cannot_control_a_terminal(storage: dict[str, Any], registry: CollectorRegistry, command: Pdc) -> None:
    """Control characters of labels and helps are spelled out."""
    pdc.setup(**storage)
    pdc.Counter("orders", "Red \x1b[31m.", ["till"], registry=registry).labels("\x1b[2J").inc()
    for arguments in (["show"], ["get", "orders"], ["get", "orders", "--raw"]):
        output = command(*arguments).output
        assert "\x1b" not in output
        assert "\\x1b" in output or "\\u001b" in output


def test_selectors_are_those_of_queries() -> None:
    """Labels may have any characters, quoted as in the text format."""
    assert Selector.parse("hits") == ("hits", {})
    labels = {"a": 'x"y\\', "b": "{}, \n"}
    assert Selector.parse(r'hits{a="x\"y\\",b="{}, \n"}') == ("hits", labels)
    assert Selector.parse(f"hits{spelled(labels.items())}") == ("hits", labels)


def test_quantiles_are_those_of_prometheus() -> None:
    """A quantile is interpolated in its bucket; in the last one it is the highest finite bound."""
    buckets = [(1.0, 2.0), (2.0, 3.0), (float("inf"), 4.0)]
    assert [quantile(each, buckets) for each in (0.25, 0.5, 0.75, 0.99)] == [0.5, 1.0, 2.0, 2.0]
    assert [duration(each) for each in (0.005, 3, 90, 7200, 200_000)] == ["5 ms", "3 s", "2 min", "2 h", "2 d"]


def test_completion_comes_from_the_library(tmp_path: Path) -> None:
    """A shell gets the names of commands for what was typed, and those of files where a command takes one."""
    environ = {**ENVIRON, "_PDC_COMPLETE": "bash_complete", "COMP_WORDS": "pdc ch", "COMP_CWORD": "1"}
    done = subprocess.run(COMMAND, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["plain,check"]
    for words in (["copy"], ["run", "--", "python"]):
        (path,) = ShellComplete(app, {}, "pdc", "_PDC_COMPLETE").get_completions(words, "metr")
        assert path.type == "file"

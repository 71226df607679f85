"""`monitoring/`: dashboards in Grafana's schema, rules with tests of their own, and both in a real Prometheus."""

from __future__ import annotations

import enum
import importlib
import json
import math
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import http_applications
import pytest
import requests
from conftest import ROOT, wait_until
from django.core.cache import caches
from django.core.management import call_command
from helpers import block
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from starlette_applications import client
from test_celery import receivers, send, worker
from test_dashboards import work
from test_prometheus import SCRAPED, Prometheus, Series

import pdc
from monitoring.__main__ import files
from monitoring.boards import DASHBOARDS, LIBRARIES
from pdc.delivery.health import NAMES
from pdc.exposition.others import FAILED

_receivers = receivers
MONITORING = ROOT / "monitoring"
RULES = sorted((MONITORING / "rules").iterdir())
BOARDS = {each.uid: json.loads((MONITORING / "dashboards" / f"{each.uid}.json").read_text()) for each in DASHBOARDS}
PAGE = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
each_board = pytest.mark.parametrize("board", BOARDS.values(), ids=BOARDS)


def panels(board: Any) -> list[Any]:
    """The panels of a dashboard without the titles of rows, but with those of folded rows."""
    found = [each for panel in board["panels"] for each in (panel, *panel.get("panels", []))]
    return [panel for panel in found if panel["type"] != "row"]


def queries(board: Any) -> list[str]:
    """The queries of its panels."""
    return [target["expr"] for panel in panels(board) for target in panel["targets"]]


def test_the_files_are_those_that_the_script_writes() -> None:
    """Each file that is made from others has the content that `python -m monitoring` writes, and the name on the page."""
    generated = files()
    assert [path.name for path in generated if path.name not in PAGE] == []
    assert [path.name for path, content in generated.items() if path.read_text(encoding="utf-8") != content] == []
    assert {*(MONITORING / "dashboards").iterdir(), *(MONITORING / "rules" / f"{name}.yml" for name in LIBRARIES[1:])} == {
        *generated
    }


@each_board
def test_a_panel_has_all_that_it_needs(board: Any) -> None:
    """A panel has an id of its own, a title, a sentence, and queries, each with a reference and the chosen data source."""
    rows = [panel for panel in board["panels"] if panel["type"] == "row"]
    found = panels(board)
    assert sorted(panel["id"] for panel in (*found, *rows)) == [*range(1, len(found) + len(rows) + 1)]
    for panel in found:
        assert panel["title"]
        assert re.fullmatch(r"[A-Z0-9<].*[.)]", panel["description"])
        assert [target["refId"] for target in panel["targets"]] == [*"ABCDEF"[: len(panel["targets"])]] != []
        assert {each["datasource"]["uid"] for each in (panel, *panel["targets"])} == {"${datasource}"}


@each_board
def test_panels_lie_side_by_side(board: Any) -> None:
    """No two panels share a place in the grid of 24 columns; those of a folded row have one to themselves."""
    for group in (board["panels"], *(row["panels"] for row in board["panels"] if row.get("panels"))):
        places = [[panel["gridPos"][key] for key in "xywh"] for panel in group]
        taken = [(column, line) for x, y, w, h in places for column in range(x, x + w) for line in range(y, y + h)]
        assert len(taken) == len({*taken})
        assert {column for column, _ in taken} <= {*range(24)}


@each_board
def test_queries_use_the_choices_of_the_dashboard(board: Any) -> None:
    """Queries use each variable of their dashboard, no other ones, and no word that stands for a selector."""
    variables = board["templating"]["list"]
    texts = "\n".join([*queries(board), *(each["query"]["query"] for each in variables if each["type"] == "query")])
    used = {*re.findall(r"\$\{?(\w+)", texts)}
    assert used - {"__rate_interval"} == {each["name"] for each in variables} - {"datasource"}
    assert re.findall(r"\b[A-Z]{2,}\b", texts) == []


def mistakes(value: Any, hint: Any, place: str = "") -> Iterator[str]:
    """The places of a decoded object that have another type than the schema gives them."""
    origin, inner = get_origin(hint), get_args(hint)
    if isinstance(value, dict) and hasattr(hint, "from_json"):  # Grafana leaves some parts to the code that uses them
        value = hint.from_json(value)
    if hasattr(value, "to_json") and (hint is object or isinstance(value, hint)):
        for name, each in get_type_hints(type(value)).items():
            yield from mistakes(getattr(value, name), each, f"{place}.{name}")
    elif origin is Union:
        choices = [each for each in inner if each is not type(None)] if value is not None else []
        yield from min(([*mistakes(value, each, place)] for each in choices), key=len, default=())
    elif origin is list and isinstance(value, list):
        yield from chain.from_iterable(mistakes(each, inner[0], f"{place}[]") for each in value)
    elif not _fits(value, origin or hint, inner):
        yield f"{place}: {value!r} is not a {hint}"


def _fits(value: Any, kind: Any, inner: tuple[Any, ...]) -> bool:
    if kind in (Any, object):
        return True
    if kind is Literal:
        return value in inner
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return value in {each.value for each in kind}
    return isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))


def dropped(ours: Any, theirs: Any, place: str = "") -> Iterator[str]:
    """The places that another object does not have, or has with another value."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        yield from chain.from_iterable(dropped(ours[key], theirs.get(key), f"{place}.{key}") for key in ours)
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        yield from chain.from_iterable(dropped(*pair, f"{place}[]") for pair in zip(ours, theirs, strict=True))
    elif ours != theirs:
        yield f"{place}: {ours!r}, in the schema {theirs!r}"


def differences(board: Any) -> list[str]:
    """The places of a dashboard that Grafana's schema does not have, or has with another type."""
    sdk = "grafana_foundation_sdk"
    importlib.import_module(f"{sdk}.cog.plugins").register_default_plugins()
    model = importlib.import_module(f"{sdk}.models.dashboard").Dashboard
    decoded = model.from_json(board)
    encoder = importlib.import_module(f"{sdk}.cog.encoder").JSONEncoder
    return [*mistakes(decoded, model), *dropped(board, json.loads(json.dumps(decoded, cls=encoder)))]


in_schema = pytest.mark.package("grafana_foundation_sdk", since=(3, 11))


@in_schema
@each_board
def test_grafana_knows_all_of_a_dashboard(board: Any) -> None:
    """Decoded with the classes that Grafana makes of its schema, each field is there, and has the type of the schema."""
    assert differences(board) == []


@in_schema
@pytest.mark.parametrize(
    ("kind", "right", "wrong", "found"),
    [
        ("timeseries", '"showPoints": "never"', '"showPoints": "seldom"', "custom.show_points: 'seldom' is not a"),
        ("timeseries", '"lineWidth"', '"lineHeight"', "custom.lineHeight: 1, in the schema None"),
        ("heatmap", '"cellGap": 1', '"cellGap": "1"', "options.cell_gap: '1' is not a"),
        ("table", '"matcher": {"id": "byName"', '"matcher": {"id": 7', "overrides[].matcher.id_val: 7 is not a"),
    ],
)
def test_a_mistake_in_a_dashboard_is_found(kind: str, right: str, wrong: str, found: str) -> None:
    """A value that is not allowed, an unknown field and another type are differences."""
    board = BOARDS["pdc-http"]
    (panel, *_) = (panel for panel in board["panels"] if panel["type"] == kind)
    spoiled = json.dumps(panel).replace(right, wrong)
    (difference, *_) = differences({**board, "panels": [json.loads(spoiled)]})
    assert found in difference


def run_promtool(*words: str, folder: Path) -> str:
    """Run promtool in a folder, and return its output."""
    done = subprocess.run(["promtool", *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rules_fire_when_they_should(tmp_path: Path) -> None:
    """The commands of the page succeed: each alert fires for its fault, and not before, after or without it."""
    (tmp_path / "monitoring").symlink_to(MONITORING)
    commands = ["bash", "-ec", block(PAGE, "sh", of="Import")]
    done = subprocess.run(commands, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"^ +SUCCESS$", done.stdout, re.MULTILINE)) == len([*(MONITORING / "tests").iterdir()])


def test_each_alert_is_tested_and_explained() -> None:
    """Each alert fires in a test, has a severity, and links to a section of its name in the page that says what to do."""
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (MONITORING / "tests").iterdir())
    fired = {*re.findall(r"- alertname: (\w+)(?:  #.*)?\n +eval_time: \w+\n +exp_alerts:\n", tests)}
    found = [alert for path in RULES for alert in re.split(r"- alert: ", path.read_text(encoding="utf-8"))[1:]]
    assert fired == {alert.split("\n", 1)[0] for alert in found}
    sections = {title.lower() for title in re.findall(r"^### (.*)$", PAGE, re.MULTILINE)}
    url = re.escape("https://github.com/dolead/prometheus-distributed-client/blob/HEAD/docs/monitoring.md")
    for alert in found:
        name = alert.split("\n", 1)[0]
        assert re.search(r"labels: \{severity: (page|ticket)\}\n", alert), name
        assert re.search(r'summary: ".+"\n +description: ".+\."\n', alert), name
        assert re.search(rf"runbook_url: {url}#{name.lower()}\n", alert), name
        assert name.lower() in sections


def test_a_job_may_have_a_limit_of_its_own(tmp_path: Path) -> None:
    """With the line of the comment in jobs.yml, JobMissing finds a job that never started, and others keep the usual limit."""
    rules = (MONITORING / "rules" / "jobs.yml").read_text(encoding="utf-8")
    (line,) = re.findall(r"^#   (label_replace.*)$", rules, re.MULTILINE)
    (tmp_path / "jobs.yml").write_text(rules.replace("  group by", f"  {line}\n          group by", 1))
    limit = "job_name:job_success_interval_seconds:limit"
    samples = "".join(
        f"          - {{labels: '{limit}{{job_name=\"{name}\"}}', value: {hours * 3600}}}\n"
        for name, hours in (("nightly", 26), ("weekly_report", 8 * 24))
    )
    (tmp_path / "test.yml").write_text(
        f"""
rule_files: [jobs.yml]
tests:
  - interval: 1m
    input_series:
      - {{series: 'job_last_start_timestamp_seconds{{job="shop", job_name="nightly"}}', values: 0x60}}
      - {{series: 'job_last_success_timestamp_seconds{{job="shop", job_name="nightly"}}', values: 0x60}}
    promql_expr_test:
      - expr: {limit}
        eval_time: 1h
        exp_samples:
{samples}
      - expr: count by (job_name) (ALERTS{{alertname="JobMissing", alertstate="firing"}})
        eval_time: 1h
        exp_samples: [{{labels: '{{job_name="weekly_report"}}', value: 1}}]
"""
    )
    run_promtool("test", "rules", "test.yml", folder=tmp_path)


def test_the_rules_of_pdc_use_all_of_its_metrics() -> None:
    """rules/pdc.yml has an alert for each metric that pdc has about itself, but for the durations of flushes."""
    spoken = {*re.findall(r"\bpdc_\w+", (MONITORING / "rules" / "pdc.yml").read_text(encoding="utf-8"))}
    assert {name.removesuffix("_total") for name in spoken} == {*NAMES, FAILED} - {"pdc_flush_duration_seconds"}


def test_the_page_explains_each_panel() -> None:
    """docs/monitoring.md has the rows and panels of the dashboards in their order, each with its text."""
    rows = [
        f"| {title} | {text} |"
        for board in DASHBOARDS
        for row in board.rows
        for title, text in [(f"**{row.title}**", ""), *((panel.title, panel.description) for panel in row.panels)]
    ]
    section = PAGE.partition("\n## Dashboards\n")[2].partition("\n## ")[0]
    found = [line for line in section.splitlines() if line.startswith("| ") and line != "| Panel | Shows |"]
    assert [line.replace("`", "") for line in found] == [row.replace("|  |", "| |") for row in rows]


def test_prometheus_accepts_the_configuration_of_the_page(tmp_path: Path) -> None:
    """With the rules beside it, the configuration of the page is one, and names all of them."""
    (tmp_path / "rules").symlink_to(MONITORING / "rules")
    (tmp_path / "prometheus.yml").write_text(block(PAGE, "yaml", of="Import"))
    assert f"SUCCESS: {len(RULES)} rule files found" in run_promtool("check", "config", "prometheus.yml", folder=tmp_path)


class Shop(NamedTuple):
    """A program that has every metric, which `act` changes."""

    name: str
    port: int
    act: Callable[[], None]


@pytest.fixture(params=[False, True], ids=["classic", "native"])
def native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """True where histograms have native buckets, and Prometheus reads these."""
    monkeypatch.setenv("PDC_NATIVE_HISTOGRAMS", str(request.param))
    return bool(request.param)


@pytest.fixture
def shop(tmp_path: Path, native: bool) -> Iterator[Shop]:
    """Applications with all measurements, jobs and a worker of Celery, in one storage."""
    place = {"sqlite_path": str(tmp_path / "metrics.db"), "flush_interval": 0.2, "native_histograms": native}
    app = http_applications.FRAMEWORKS["starlette"](**place, sizes=True, first_byte=True, process_metrics=True)
    app.app.router.routes.append(WebSocketRoute("/rooms/{room}", room))
    with ExitStack() as stack:
        app.get("/items/tea")  # the first request sets the storage up
        tasks = stack.enter_context(worker(queue_length=True))
        django = http_applications.FRAMEWORKS["django"](**place, django_caches=True)
        stack.callback(django.close)
        call_command("migrate", verbosity=0)
        cache = caches.create_connection("default")

        def act() -> None:
            work(cache)
            django.get("/items/tea")
            for path in ("/items/tea", "/missing/tea", "/nowhere", "/broken", "/stream"):
                app.get(path, 2)
            app.request("POST", "/orders", body=b"tea")
            for number in range(2):
                with suppress(KeyError), client(app.app).websocket_connect(f"/rooms/{number}") as websocket:
                    websocket.receive_text()
            for end in ("success", "failure", "retry"):
                send(tasks, end)
            for size in (1, 0):
                with suppress(ZeroDivisionError), pdc.job("nightly") as job:
                    job.count(1 / size)

        yield Shop("shop", stack.enter_context(http_applications.uvicorn_server(app.app)), act)


async def room(websocket: WebSocket) -> None:
    """Accept, say something, and fail in every second room."""
    await websocket.accept()
    await websocket.send_text("welcome")
    if websocket.path_params["room"] == "1":
        raise KeyError


@pytest.fixture
def prometheus(tmp_path: Path, shop: Shop, native: bool) -> Iterator[Prometheus]:
    """A Prometheus with all rules that has scraped the program before and after all kinds of events."""
    shop.act()
    options = ["--enable-feature=native-histograms"] if native else []
    server = Prometheus(tmp_path, [shop], MONITORING / "rules", *options)  # type: ignore[list-item]  # it asks for no more
    try:
        for seen in (wait_until(partial(server.query, f"{SCRAPED} > 0"), 30)[shop.name,],) * 2:
            wait_until(partial(server.query, f"{SCRAPED} > {seen + 2:.3f}"), 30)
            shop.act()
        yield server
    finally:
        server.process.terminate()
        server.process.wait(30)


def unfiltered(expression: str) -> str:
    """The expression of an alert without its thresholds, of now: it has an answer where each of its parts has one.

    Of native and classic buckets, only one kind has an answer.
    """
    if "histogram_" in expression:
        return expression
    together = re.sub(r"\b(?:and|or|unless)\b(?: on \([^)]*\))?", "and on ()", expression.replace(" offset 1h", ""))
    return re.sub(r" (>|<|==) ", r" \1 bool ", together)


@pytest.mark.long
def test_every_expression_returns_numbers(prometheus: Prometheus) -> None:
    """Each query of a dashboard, each recorded series and each part of an alert has a number in a real Prometheus."""
    rules = [rule["query"] for group in asked(prometheus, "rules")["groups"] for rule in group["rules"]]
    left = [*chain.from_iterable(map(queries, BOARDS.values())), *map(unfiltered, rules)]
    assert len(left) > 100
    left = [chosen(query) for query in left if not re.search(r"\b(rq|dramatiq)_", query)]

    def all_return() -> bool:
        left[:] = [query for query in left if all(map(math.isnan, prometheus.query(query).values()))]
        return not left

    with suppress(AssertionError):
        wait_until(all_return)
    assert left == []


@pytest.mark.long
@pytest.mark.parametrize("native", [True], indirect=True)
def test_slow_requests_are_counted_in_native_buckets(prometheus: Prometheus) -> None:
    """Of the requests of the last minutes none took longer than a minute, and each longer than no time."""
    rules = (MONITORING / "rules" / "http.yml").read_text()
    (slow,) = re.findall(r"record: job:http_slow:rate5m\n +expr: \|\n((?: {10}.*\n)+)", rules)
    count = "histogram_count(sum by (job) (rate(http_request_duration_seconds[5m])))"

    def part(seconds: str) -> dict[Series, float]:  # in one query, so of one moment: a rate depends on it
        return prometheus.query(f"({slow.replace('0.5', seconds)}) / ({count} > 0)")

    wait_until(partial(part, "0.5"))
    assert prometheus.query("job:http_slow:rate5m")
    assert not prometheus.query("http_request_duration_seconds_bucket")
    assert part("60") == {("",): 0.0}
    assert part("0") == {("",): pytest.approx(1.0)}


@pytest.mark.long
def test_every_choice_has_values(prometheus: Prometheus) -> None:
    """Each variable of a dashboard has a value in a real Prometheus, and that of a library its name."""
    for variable in chain.from_iterable(board["templating"]["list"] for board in BOARDS.values()):
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", chosen(variable["query"]["query"]))
            assert found
            values = asked(prometheus, f"label/{found[2]}/values", {"match[]": found[1]})
            assert values, variable
            cut = re.compile(variable["regex"].strip("/") or "(.*)")
            names = [match[1] for match in map(cut.fullmatch, values) if match]
            assert names == (["celery"] if variable["name"] == "library" else values)


def asked(prometheus: Prometheus, path: str, parameters: dict[str, str] | None = None) -> Any:
    """The answer of the interface of Prometheus at that path."""
    return requests.get(f"{prometheus.url.removesuffix('query')}{path}", parameters, timeout=10).json()["data"]


def chosen(query: str) -> str:
    """The query with values for its variables."""
    values = {"job": "shops", "library": "celery", "__rate_interval": "1m"}
    return re.sub(r"\$\{?(\w+)\}?", lambda name: values.get(name[1], ".*"), query)

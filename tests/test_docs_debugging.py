"""docs/debugging.md: each case is made, and shows the lines of the log and the output that the page quotes."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from conftest import ROOT, RedisServer, wait_until
from flask import Flask
from helpers import Run, block, refused, run_block, shown
from prometheus_client import CollectorRegistry

import pdc
import pdc.family
import pdc_flask
from pdc import config
from pdc.cli import main
from pdc.cli.findings_redis import MOST_CLOCK_SECONDS
from pdc.delivery.journal import default_folders
from pdc.exposition import Scrape

PAGE = (ROOT / "docs" / "debugging.md").read_text(encoding="utf-8")
Start = Callable[[str, dict[str, Any]], "subprocess.Popen[str]"]


def as_quoted(text: str, folder: Path) -> str:
    """The text with the places and times of the page."""
    text = text.replace(str(default_folders()[0]), "/tmp/pdc-1000").replace(str(folder), "/srv/shop")
    text = re.sub(r"localhost:\d+|127\.0\.0\.1:\d+", "localhost:6379", text)
    text = re.sub(r"\b\d+-[0-9a-f]{16}\b", "PROCESS", text)
    return re.sub(r"\b\d+ (ms|s|min)( ago| old)", r"TIME\2", text)


def is_quoted(text: str, folder: Path) -> bool:
    """True if the page has the text."""
    return as_quoted(text, folder) in re.sub(" +", " ", as_quoted(PAGE, folder))


@pytest.fixture
def database(tmp_path: Path) -> dict[str, Any]:
    """The arguments of `pdc.setup` for a file."""
    return {"sqlite": str(tmp_path / "metrics.db")}


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The lines of the log so far, as the page has them."""
    caplog.set_level(logging.INFO, "pdc")
    return lambda: [f"{each.levelname}:{each.name}:{each.getMessage()}" for each in caplog.records]


def printed(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    """The output of a command, with a space between columns."""
    capsys.readouterr()
    main([*command])
    return re.sub("[ \t]+", " ", capsys.readouterr().out.replace("# ", ""))


def test_the_first_line_names_the_place(database: dict[str, Any], lines: Callable[[], list[str]], tmp_path: Path) -> None:
    """At INFO `setup` logs the place of the metrics, as quoted."""
    pdc.setup(**database, flush_interval=1)
    assert [is_quoted(line, tmp_path) for line in lines()] == [True]


@pytest.fixture
def counted_by_two(
    database: dict[str, Any], registry: CollectorRegistry, run_script: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> pdc.Counter:
    """Two processes that count the same, in the file of the page."""
    monkeypatch.chdir(tmp_path)
    pdc.setup(**database)
    requests = pdc.Counter("requests", "Requests.", ["route"], registry=registry)
    requests.labels("/").inc(3)
    run_script("setup(); pdc.Counter('requests', 'Requests.', ['route']).labels('/').inc(4)", storage=database)
    return requests


@pytest.mark.usefixtures("counted_by_two")
def test_the_commands_show_each_process(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`pdc get` shows the sum of two programs and both processes, as quoted; the other commands end well."""
    for line in block(PAGE, "sh", of="First looks").splitlines():
        words, _, pattern = line.partition(" | grep ")
        output = printed(capsys, *words.split()[1:])
        assert pattern in output
        if words == "pdc get requests":
            assert is_quoted(output, tmp_path)


def test_queries_of_two_targets(tmp_path: Path) -> None:
    """Two targets double a sum, which the query of the page shows; a quantile has the highest bound, or is no number."""
    target = 'job="shop",instance="{}"'
    series = [
        {"series": f"{name}{{{target.format(n)}}}", "values": "1x60"} for n in "ab" for name in ("pdc_storage_up", "x_total")
    ]
    series += [
        {"series": f'{name}_bucket{{le="{le}"}}', "values": f"0+{step}x60"}
        for name, steps in (("slow", (0, 1)), ("idle", (0, 0)))
        for le, step in zip(("1", "+Inf"), steps, strict=True)
    ]
    quantile = "histogram_quantile(0.9, rate({}_bucket[5m]))"
    answers = [
        (block(PAGE, "promql", of="Twice as high").strip(), '{job="shop"}', 2),
        ("sum(x_total)", "{}", 2),
        ("max(x_total)", "{}", 1),
        (quantile.format("slow"), "{}", 1),
        (f"count({quantile.format('idle')} != {quantile.format('idle')})", "{}", 1),  # as NaN is
        ("sum(slow_bucket) > sum(slow_count)", "", 0),
    ]
    tests = [
        {"expr": query, "eval_time": "30m", "exp_samples": [{"labels": labels, "value": value}] if labels else []}
        for query, labels, value in answers
    ]
    rules = {"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": tests}]}
    (tmp_path / "rules.yml").write_text(json.dumps(rules))
    done = subprocess.run(["promtool", "test", "rules", "rules.yml"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout


def test_two_programs_without_a_prefix(
    redis_server: RedisServer, run_script: Run, lines: Callable[[], list[str]], tmp_path: Path, registry: CollectorRegistry
) -> None:
    """The second program in a Redis without a prefix logs the quoted line, and its counts add up with those of the first."""
    storage: dict[str, Any] = {"redis": redis_server.url}
    run_script("setup(); pdc.Counter('requests', '').inc(4); pdc.Counter('first', '').inc()", storage=storage)
    pdc.setup(**storage)
    pdc.Counter("second", "Of the second program.", registry=registry).inc()
    pdc.Counter("requests", "", registry=registry).inc()
    assert shown("requests") == {"requests_total": 5.0}
    assert is_quoted(wait_until(lambda: [line for line in lines() if "redis_prefix:" in line])[0], tmp_path)


def test_a_page_of_another_storage(database: dict[str, Any], registry: CollectorRegistry) -> None:
    """A process that declares metrics shows zeros of a storage that nobody writes, and another one a 503."""
    pdc.setup(**database)
    assert refused().startswith("# nobody writes to ")
    pdc.Counter("requests", "Requests.", registry=registry)
    assert shown("requests") == {"requests_total": 0.0}


def test_an_update_is_on_its_way(database: dict[str, Any], registry: CollectorRegistry) -> None:
    """With a buffer, an update is in the storage after a flush, and before on the page of its own process alone."""
    pdc.setup(**database, flush_interval=3600)
    pdc.Counter("requests", "Requests.", registry=registry).inc()
    assert config.DEFAULT.required().read().metrics == {}
    assert shown("requests") == {"requests_total": 1.0}


def test_a_storage_that_cannot_be_written(tmp_path: Path, lines: Callable[[], list[str]], registry: CollectorRegistry) -> None:
    """The log has the quoted lines at the begin and the end of an outage, and the updates are there then."""
    pdc.setup(sqlite=tmp_path / "missing" / "metrics.db")
    requests = pdc.Counter("requests", "Requests.", registry=registry)
    requests.inc()
    assert re.match("# cannot write .*\n# 1 series of this process waits? in memory", refused())
    (tmp_path / "missing").mkdir()
    pdc.flush()
    outage = wait_until(lambda: len(found := [line for line in lines() if line.startswith("WARNING")]) == 2 and found)
    assert [is_quoted(line, tmp_path) for line in outage] == [True, True]
    assert shown("requests") == {"requests_total": 1.0}


def test_a_process_that_was_killed(
    database: dict[str, Any], run_script: Run, capsys: pytest.CaptureFixture[str], tmp_path: Path, registry: CollectorRegistry
) -> None:
    """`pdc check` shows its journal as quoted, and the next process that counts sends its updates."""
    pdc.setup(**database)
    pdc.Counter("others", "Others.", registry=registry).inc()
    pdc.shutdown()
    source = "setup(flush_interval=60); pdc.Counter('requests', 'Requests.').inc(7); import os; os.kill(os.getpid(), 9)"
    assert run_script(source, storage=database, check=False).returncode == -signal.SIGKILL
    found = printed(capsys, "check", "--sqlite", database["sqlite"])
    assert is_quoted(next(line for line in found.splitlines() if " journals " in line), tmp_path)
    pdc.setup(**database)
    pdc.Counter("others", "Others.", registry=CollectorRegistry()).inc()
    wait_until(lambda: shown("requests") == {"requests_total": 7.0})


def test_a_new_file_gets_the_journal_of_a_killed_process(
    database: dict[str, Any], run_script: Run, tmp_path: Path, registry: CollectorRegistry
) -> None:
    """A file in the place of a deleted one gets the updates of a killed process; then `pdc clear` begins at 0."""
    source = "setup(flush_interval=60); c = pdc.Counter('requests', 'Requests.'); c.inc(); pdc.flush(); c.inc(7)"
    assert (
        run_script(f"{source}; import os; os.kill(os.getpid(), 9)", storage=database, check=False).returncode == -signal.SIGKILL
    )
    for file in tmp_path.glob("metrics.db*"):
        file.unlink()
    pdc.setup(**database)
    pdc.Counter("others", "Others.", registry=registry).inc()
    wait_until(lambda: shown("requests") == {"requests_total": 7.0})
    assert main(["clear", "--sqlite", database["sqlite"], "--yes"]) == 0
    assert shown("requests") == {}


def test_metrics_of_one_process(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    """A page with a metric of prometheus_client logs the quoted line."""
    registry = CollectorRegistry()
    prometheus_client.Counter("hits", "Hits.", registry=registry)
    app = Flask("shop")
    app.config.update(PDC_SQLITE_PATH=str(tmp_path / "metrics.db"), PDC_REGISTRY=registry)
    pdc_flask.PrometheusMetrics(app)
    assert app.test_client().get("/metrics").status_code == 200
    assert [is_quoted(line, tmp_path) for line in lines() if "prometheus_client" in line] == [True]


def test_an_older_page(tmp_path: Path, lines: Callable[[], list[str]]) -> None:
    """A view of the application at the path of the page hides it, and the log has the quoted line."""
    app = Flask("shop")
    app.config.update(PDC_SQLITE_PATH=str(tmp_path / "metrics.db"))
    app.add_url_rule("/metrics", "metrics", lambda: "of one process")
    pdc_flask.PrometheusMetrics(app)
    assert app.test_client().get("/metrics").text == "of one process"
    assert [is_quoted(line, tmp_path) for line in lines() if "both" in line] == [True]


SET_ALL = """
for mode in {modes}:
    pdc.Gauge("g_" + mode, "Help.", multiprocess_mode=mode).set(5)
pdc.Gauge("busy", "Busy tills.", multiprocess_mode="liveall").set(5)
"""


def values(page: dict[str, float], mode: str) -> str:
    """The values of the gauge of a mode as the table has them."""
    found = sorted(value for sample, value in page.items() if re.fullmatch(rf"g_{mode}(\{{.*)?", sample))
    return " and ".join(f"{value:g}" for value in found)


def test_gauges_of_two_processes(
    database: dict[str, Any],
    registry: CollectorRegistry,
    start_script: Start,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Each mode has the values of the table, while both processes live and after the kill of one; `pdc get` shows them."""
    rows = re.findall(r"^\| ((?:`[a-z]+`(?:, )?)+)(?:, the default)? \| ([^|]+) \| ([^|]+) \|$", PAGE, re.MULTILINE)
    modes = [mode for names, _, _ in rows for mode in re.findall(r"\w+", names)]
    assert set(modes) == {"shared", *pdc.Gauge._MULTIPROC_MODES}
    pdc.setup(**database)
    gauges = [pdc.Gauge(f"g_{mode}", "Help.", registry=registry, multiprocess_mode=mode) for mode in modes]
    gauges.append(pdc.Gauge("busy", "Busy tills.", registry=registry, multiprocess_mode="liveall"))
    for gauge in gauges:
        gauge.set(3)
    child = start_script(SET_ALL.format(modes=modes), database)
    living = shown("g_")
    output = printed(capsys, "get", "busy", "--sqlite", database["sqlite"])
    lines = output[output.index("Values of") : output.index("Written by")].splitlines()
    assert [line for line in lines if not is_quoted(line, tmp_path)] == []  # their order is that of the process ids
    child.kill()
    child.wait()
    monkeypatch.setattr(pdc.family, "LEASE_SECONDS", 0.3)
    time.sleep(0.4)
    for gauge, mode in zip(gauges, modes, strict=False):
        if mode.startswith("live"):
            gauge.set(3)
    left = shown("g_")
    for names, before, after in rows:
        found = [", ".join(values(page, mode) for mode in re.findall(r"\w+", names)) for page in (living, left)]
        quoted = [re.sub(r"(, the last one|, with a label.*| after 15 s|, for a day)$", "", text) for text in (before, after)]
        if "mostrecent" in names:
            quoted = ["5, 5", "5, 3"]
        assert found == quoted, names


def test_a_gauge_of_a_process_that_was_killed(
    database: dict[str, Any], run_script: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process leaves its 1 in a shared gauge, and not in one of the mode livesum."""
    source = """
import os
setup()
pdc.Gauge("shared_jobs", "").inc()
pdc.Gauge("live_jobs", "", multiprocess_mode="livesum").inc()
os.kill(os.getpid(), 9)
"""
    run_script(source, storage=database, check=False)
    pdc.setup(**database)
    assert shown() == {"shared_jobs": 1.0, "live_jobs": 1.0}
    monkeypatch.setattr(pdc.family, "LEASE_SECONDS", 0.0)
    assert shown() == {"shared_jobs": 1.0}


def test_a_metric_that_expires(
    redis_server: RedisServer, capsys: pytest.CaptureFixture[str], tmp_path: Path, registry: CollectorRegistry
) -> None:
    """`pdc get` shows the expiry as quoted; a metric that expired begins anew, with a later `_created`."""
    for name, expire in (("short", 3600), ("long", None)):
        pdc.setup(redis=redis_server.url, redis_prefix="shop", redis_expire=expire)
        pdc.Counter(name, "Help.", registry=CollectorRegistry()).inc()
        pdc.shutdown()
        output = printed(capsys, "get", name, "--redis", redis_server.url, "--prefix", "shop")
        assert is_quoted(next(line for line in output.splitlines() if "expires" in line), tmp_path)
    begun = []
    for _ in range(2):
        pdc.setup(redis=redis_server.url, redis_prefix="shop", redis_expire=0.05)
        pdc.Counter("jobs", "Help.", registry=registry and CollectorRegistry()).inc()
        page = pdc.generate_latest().decode()
        assert "\njobs_total 1.0\n" in page
        begun += re.findall(r"^jobs_created (\S+)$", page, re.MULTILINE)
        pdc.shutdown()
        time.sleep(0.1)
    assert begun[0] < begun[1]


def test_series_that_are_made_at_the_start(tmp_path: Path) -> None:
    """The blocks of the page run, and show both series as 0."""
    output = run_block(block(PAGE, "python", of="First looks") + block(PAGE, "python", of="`increase` is too low"), tmp_path)
    assert {'logins_total{result="success"} 0.0', 'logins_total{result="failure"} 0.0'} <= set(output)


def test_labels_that_nobody_wrote(tmp_path: Path, lines: Callable[[], list[str]], registry: CollectorRegistry) -> None:
    """The labels are as in the table: of no route, of no method, of a callable that raises, of a series over the limit."""
    app = Flask("shop")
    app.config.update(PDC_SQLITE_PATH=str(tmp_path / "metrics.db"), PDC_REGISTRY=registry, PDC_LABELS={"zone": lambda _: 1 / 0})
    pdc_flask.PrometheusMetrics(app)
    app.test_client().open("/nowhere", method="BREW")
    visits = pdc.Counter("visits", "Visits.", ["page"], registry=registry, max_series=1)
    for page in "ab":
        visits.labels(page).inc()
    assert shown("visits") == {'visits_total{page="<overflow>"}': 1.0, 'visits_total{page="a"}': 1.0}
    labels = 'method="<other>",route="<unmatched>",status="404",zone=""'
    assert f"http_requests_total{{{labels}}}" in shown("http_requests_total")
    assert [is_quoted(line, tmp_path) for line in lines() if "max_series" in line] == [True]
    assert [line for line in lines() if "zone" in line]


def test_metrics_that_are_missing(database: dict[str, Any], lines: Callable[[], list[str]], tmp_path: Path) -> None:
    """Two metrics of one name, and one of another type than before, have the quoted lines in the log."""
    registries = [CollectorRegistry() for _ in range(4)]
    pdc.setup(**database)
    pdc.Gauge("level", "Level.", registry=registries[0]).set(3)
    pdc.shutdown()
    pdc.setup(**database)
    pdc.Counter("level", "Level.", registry=registries[1]).inc()
    pdc.Counter("jobs", "Jobs.", registry=registries[2]).inc()
    pdc.Gauge("jobs_total", "Jobs.", registry=registries[3]).set(5)
    assert "\npdc_families_hidden 1.0\n" in Scrape().answer().body.decode()
    found = wait_until(lambda: len(found := [line for line in lines() if line.startswith("WARNING")]) >= 2 and found)
    assert [is_quoted(line, tmp_path) for line in found] == [True, True]
    pdc.Counter("served", "Served.", ["till"], registry=registries[0])
    page = pdc.generate_latest().decode()
    assert "# TYPE served_total counter" in page
    assert "\nserved_total" not in page


def test_the_reasons_of_a_503(redis_server: RedisServer, registry: CollectorRegistry) -> None:
    """A key that holds something else, and a foreign field, are named at the start of the reason, as in the table."""
    pdc.setup(redis=redis_server.url, redis_prefix="shop")
    counter = pdc.Counter("b", "Help.", registry=registry)
    with redis_server.client() as client:
        client.set("prometheus_shop_b", "precious")
        counter.inc()
        assert refused().startswith("# metric 'b' is refused: ")
        client.delete("prometheus_shop_b")
        pdc.flush()
        client.hset("prometheus_shop_b", b"_total:\xff", "1")
        assert refused().startswith("# metric 'b' holds something that pdc did not write: ")


def test_other_facts_of_the_page(database: dict[str, Any], registry: CollectorRegistry) -> None:
    """Old bounds stay after a change of the buckets, and `pdc check` compares clocks with the limit of the page."""
    pdc.setup(**database)
    pdc.Histogram("wait", "Wait.", buckets=(1,), registry=registry).observe(0.5)
    pdc.Histogram("wait", "Wait.", buckets=(2,), registry=CollectorRegistry()).observe(0.5)
    assert [*shown("wait_bucket")] == ['wait_bucket{le="1.0"}', 'wait_bucket{le="2.0"}', 'wait_bucket{le="+Inf"}']
    assert f"{MOST_CLOCK_SECONDS:g} s or more apart" in re.sub(r"\s+", " ", PAGE)

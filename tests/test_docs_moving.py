"""docs/moving.md: its tables have the metrics of the exporters, of pdc and of the multiprocess mode; its job counts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from helpers import SCRIPTS, block, run_block, script

import pdc
from pdc.http.names import NAMES, PDC, Named
from pdc.metrics import StoredMetric
from pdc_django import caches, changes, databases

PAGE = (ROOT / "docs" / "moving.md").read_text(encoding="utf-8")
OPTIONS = {"prometheus-fastapi-instrumentator": "fastapi-instrumentator"}
"""The value of PDC_NAMES, where it is not the name of the exporter."""
MIGRATIONS = ("django_migrations_applied", "django_migrations_unapplied")


def section(title: str) -> str:
    """The section of that title."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def names_of(exporter: str) -> list[tuple[str, str, str]]:
    """The rows of the table of names: the metric of the exporter, that of pdc, and if PDC_NAMES keeps it."""
    return re.findall(r"^\| `(\S+)` \| (.+) \| (yes|no) \|$", section(exporter), re.MULTILINE)


def spelled(name: str, labels: object) -> str:
    """A metric as the tables have it."""
    listed = ",".join(labels) if isinstance(labels, (list, tuple, dict)) else str(labels)
    return f"{name}{{{listed}}}" if listed else name


def of_family(family: StoredMetric) -> str:
    """A metric that exists, as the tables have it."""
    total = "_total" if isinstance(family, pdc.Counter) else ""
    return spelled(f"{family._name}{total}", family._labelnames)


def of_name(named: Named, namespace: str = "") -> str:
    """A metric of requests, as the tables have it."""
    total = "_total" if named.kind is pdc.Counter else ""
    return spelled("_".join(filter(None, (namespace, named.name))) + total, tuple(named.labels))


def of_django(*, has_peer_names: bool) -> set[str]:
    """The metrics of Django, without those of requests."""
    families = [*databases._families("", has_peer_names, native=False), *caches._families("", has_peer_names, native=False)[:2]]
    if not has_peer_names:
        return {*map(of_family, [*families, changes._family("")]), *(spelled(name, "alias") for name in MIGRATIONS)}
    from pdc_django import templates

    families += [databases._peer_family(f"django_db_{name}", "", "") for name in ("new_connections", "execute_many")]
    families += [changes._peer_family("", operation) for operation in ("insert", "update", "delete")]
    families += [caches._peer_family(""), templates._family("", 10)]
    return {*map(of_family, families), *(spelled(f"{name}_total", "connection") for name in MIGRATIONS)}


@pytest.fixture(scope="module")
def exported() -> dict[str, list[str]]:
    """The metrics of each exporter."""
    command = [sys.executable, str(SCRIPTS / "exporters_families.py")]
    found: dict[str, list[str]] = json.loads(subprocess.check_output(command, text=True, timeout=60))
    return found


def test_the_tables_have_the_metrics_that_exporters_export(exported: dict[str, list[str]]) -> None:
    """Each metric of an exporter has a row with its labels, and there are no other rows."""
    assert {exporter: sorted(old for old, _, _ in names_of(exporter)) for exporter in exported} == exported


def test_the_tables_have_the_metrics_of_pdc(exported: dict[str, list[str]]) -> None:
    """The second column has metrics of pdc with their labels; the third is right about PDC_NAMES, which keeps no others."""
    ours = {*map(of_name, PDC.families), *of_django(has_peer_names=False)}
    for exporter in exported:
        rows, names = names_of(exporter), NAMES[OPTIONS.get(exporter, exporter)]
        new = {name for _, text, _ in rows for name in re.findall(r"`(\w+\{[\w,]+\})`", text)}
        assert new - ours == set()
        assert [old for old, text, _ in rows if "`" not in text and not text.startswith("none")] == []
        kept = {of_name(named, names.namespace) for named in names.families}
        if exporter == "django-prometheus":
            kept |= of_django(has_peer_names=True)
        assert {old for old, _, is_kept in rows if is_kept == "yes"} == kept


EXPORTER = """
from flask import Flask
from prometheus_flask_exporter import PrometheusMetrics
app = Flask("shop")
PrometheusMetrics(app, group_by={!r})
"""
REQUESTS = """
app.add_url_rule("/items/<int:number>", "item", lambda number: f"tea {number}")
client = app.test_client()
for asked in ("/items/3", "/items/4", "/missing"):
    client.get(asked)
for line in client.get("/metrics").text.splitlines():
    if line.startswith(("flask_http_request_duration_seconds_count", "flask_http_request_total")):
        print(line)
"""


@pytest.mark.parametrize(("group", "other"), [("url_rule", "endpoint"), ("endpoint", "url_rule")])
def test_the_label_of_group_by_can_be_kept(group: str, other: str, tmp_path: Path) -> None:
    """With the label of the page, each duration is there with its value, and has the rule in `path`; totals have the label."""
    ours = f"import os\nos.environ['PDC_FLUSH_INTERVAL'] = '0'\n{block(PAGE, 'python', of='prometheus-flask-exporter')}"
    before, after = (run_block(source + REQUESTS, tmp_path) for source in (EXPORTER.format(group), ours))
    assert len([line for line in before if f'{group}="None"' in line]) == 1
    paths = {path for line in after for path in re.findall('path="([^"]+)"', line)}
    assert paths == {"/items/<int:number>", "<unmatched>"}
    kept = {re.sub(rf'(path|{other})="[^"]*",?', "", line).replace(",}", "}") for line in after if "duration" in line}
    assert kept == {line for line in before if "duration" in line}
    assert [line for line in after if f'{group}="' not in line] == []


def test_the_views_of_django_prometheus_differ_as_the_page_says(tmp_path: Path) -> None:
    """The same requests differ by the page itself, and by the request that no route matches."""
    before, after = (
        set(run_block(f"import sys; sys.argv[1:] = [{way!r}]\n{script('moved_django.py')}", tmp_path))
        for way in ("before", "after")
    )
    start = 'django_http_requests_total_by_view_transport_method_total{method="GET",transport="http",view='
    assert f'{start}"item"}} 2.0' in before & after
    assert before - after == {
        f'{start}"prometheus-django-metrics"}} 2.0',
        'django_http_requests_total_by_method_total{method="GET"} 5.0',
        'django_http_requests_total_by_transport_total{transport="http"} 5.0',
    }
    assert after - before == {
        f'{start}"<unnamed view>"}} 1.0',
        'django_http_requests_total_by_method_total{method="GET"} 3.0',
        'django_http_requests_total_by_transport_total{transport="http"} 3.0',
    }
    names = (ROOT / "docs" / "http.md").read_text(encoding="utf-8").partition("\n### django-prometheus\n")[2]
    assert all(name in names for name in ('view="<unnamed view>"', 'view="prometheus-django-metrics"'))


def pages(way: str, folder: Path) -> list[list[str]]:
    """The samples of the pages of a program, whose processes share metrics in that way."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    if way == "plain":
        (folder / "files").mkdir()
        environ["PROMETHEUS_MULTIPROC_DIR"] = "files"
    command = [sys.executable, str(SCRIPTS / "multiprocess.py"), way]
    output = subprocess.check_output(command, cwd=folder, env=environ, text=True, timeout=60)
    found = re.sub(r'pid="\d+(-[0-9a-f]{16})?"', 'pid="PROCESS"', output).split("END OF PAGE\n")
    return [sorted(line for line in page.splitlines() if line and not line.startswith("#")) for page in found]


@pytest.mark.long
def test_the_multiprocess_mode_shows_the_same(tmp_path: Path) -> None:
    """The same program gives the same pages in every gauge mode, but for the differences that the page names."""
    plain, installed = (pages(way, tmp_path) for way in ("plain", "installed"))
    for before, now, exemplars in zip(plain[:3], installed[:3], (False, True, False), strict=True):
        more = {line for line in now if line.startswith("version_info") or "_created" in line}
        gone = {line for line in before if line.startswith('orders_total{till="2"}')}
        assert 'version_info{number="3"} 1.0' in more
        assert any(line.startswith('orders_created{till="1"}') for line in more)
        assert gone  # `remove` of one process
        assert [line for line in before if " # " in line] == []
        assert any(" # " in line for line in now) == exemplars
        plain_now = [line.partition(" # ")[0] for line in now if line not in more]
        assert plain_now == [line for line in before if line not in gone]
    assert installed[3] == ["True"]


def test_the_table_of_the_multiprocess_mode_has_all_gauge_modes() -> None:
    """Each mode of prometheus_client is on the page."""
    text = section("The multiprocess mode of prometheus_client")
    assert {mode for mode in pdc.Gauge._MULTIPROC_MODES if not re.search(rf"\b{mode}\b", text)} == set()


def test_the_job_of_the_page_counts_and_pushes_go_on(tmp_path: Path) -> None:
    """The job has the metrics that the table names, over its runs, and a push after `install` has values of all processes."""
    push = """
from prometheus_client import REGISTRY, Counter, push_to_gateway
print(pdc.generate_latest().decode())
pdc.install()
Counter("pushed_rows", "Rows.").inc()
def handler(url, method, timeout, headers, data):
    return lambda: print(method, url, data.decode())
push_to_gateway("gateway:9091", job="nightly", registry=REGISTRY, handler=handler)
"""
    program = block(PAGE, "python", of="The Pushgateway") + push
    run_block(program, tmp_path)
    shown, pushed = "\n".join(run_block(program, tmp_path)).split("PUT http://gateway:9091/metrics/job/nightly ")
    assert 'job_runs_total{job_name="nightly",outcome="success"} 2.0' in shown
    assert 'job_items_total{job_name="nightly",result="processed"} 6.0' in shown
    assert "pushed_rows_total 2.0" in pushed
    named = set(re.findall(r"`(job_\w+?_(?:total|seconds))\b", section("The Pushgateway")))
    assert len(named) == 2
    assert [name for name in named if f"\n# HELP {name}" not in shown] == []

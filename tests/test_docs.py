"""The pages of docs/: their code runs as written, in its own processes, and their tables match the code."""

from __future__ import annotations

import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from commands import ENVIRON
from conftest import ROOT, RedisServer, free_port, wait_until
from helpers import block, run_block

from pdc.cli import main
from pdc.delivery.journal import layout
from pdc.http import RequestRecord
from pdc.http.names import NAMES
from pdc_django.conf import DjangoOptions

PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
ACCESS, ARCHITECTURE, CLI, HTTP, JOBS, REDIS, REFERENCE = (
    PAGES[f"{name}.md"] for name in ("access", "architecture", "cli", "http", "jobs", "redis", "reference")
)
VARYING = {r"\d+-[0-9a-f]{16}": "WRITER", r"\b1\d{9}\.\d+": "TIME", r"(?<=#mark:WRITER  )\d+": "SEQUENCE"}
"""The parts of a line that differ from run to run, and their names."""

NOT_FOUND = '{"detail":"Not Found"}'
"""The answer of FastAPI to a path without a route."""


def same(line: str) -> str:
    """The line with names for the parts that differ from run to run."""
    for pattern, name in VARYING.items():
        line = re.sub(pattern, name, line)
    return line


def test_every_block_of_code_is_run() -> None:
    """The pages have as many blocks of code as tests run: here, and in the other files about one page each."""
    found = {name: re.findall(r"^```(?!text)(\w+)$", page, re.MULTILINE) for name, page in PAGES.items()}
    assert {name: languages for name, languages in found.items() if languages} == {
        "access.md": ["yaml", "python", "python", "python"],
        "architecture.md": ["python", "python"],
        "cli.md": ["sh", "sh", "python", "sh", "python", *["sh"] * 6],
        "dashboard.md": ["python", "sh"],
        "debugging.md": ["python", "sh", "promql", "python"],
        "django.md": ["sh", "sh", "python", "python", "sh", "sh", "yaml", "sh", "sh", "promql", "sh"],
        "flask.md": ["sh", "python", "sh", "sh", "yaml", "sh", "sh", "promql", "sh"],
        "containers.md": ["promql"],
        "deployment.md": ["python", *["sh"] * 4, *["ini"] * 3, "python"],
        "http.md": ["python", "python", "python", "promql"],
        "install.md": ["python", "python", "sh"],
        "jobs.md": ["python", "promql", "python", "python", "python"],
        "monitoring.md": ["yaml", "sh"],
        "moving.md": ["python", "python"],
        "native.md": ["python", "promql"],
        "own_storage.md": ["python"] * 3,
        "redis.md": ["python", "python"],
        "reference.md": ["python", "promql"],
        "testing.md": ["toml", *["python"] * 7],
        "starlette.md": ["sh", "python", "python", "sh", "sh", "yaml", "sh", "sh", "promql", "sh"],
        "storages.md": ["python"],
    }


def test_the_commands_of_the_page_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command ends well after those before it, and the shown table is the one of that program."""
    monkeypatch.chdir(tmp_path)
    run_block(block(CLI, "python", of="Look at metrics"), tmp_path)
    shown = block(CLI, "text", of="Look at metrics")
    for titled in ("The options", "Look at metrics", "Check a storage", "Copy", "Migrate from version 2", "Delete"):
        for line in block(CLI, "sh", of=titled).splitlines():
            words, _, pattern = line.partition(" | grep ")
            assert main(shlex.split(words)[1:]) == 0, line
            output = capsys.readouterr().out
            assert pattern in output
            if words == "pdc show":
                assert [row.split("\t") for row in output.replace(" \t", "\t").splitlines()] == [
                    re.split("  +", row) for row in shown.splitlines()
                ]
    assert json.loads((tmp_path / "metrics.json").read_text())[0]["name"] == "orders"


def run_shell(source: str, folder: Path) -> str:
    """Run the commands of a shell, in which `pdc` and `python` are those of the tests, and return their output."""
    for name, words in (("pdc", [sys.executable, "-m", "pdc"]), ("python", [sys.executable])):
        command = folder / name
        command.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        command.chmod(0o755)
    done = subprocess.run(
        ["bash", "-m", "-c", f"set -e\n{source}"],
        cwd=folder,
        env={**ENVIRON, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_block_of_a_server_serves(tmp_path: Path) -> None:
    """The commands of the shell get the health and the metrics of the server, and stop it; the completion can be loaded."""
    run_block(block(CLI, "python", of="Look at metrics"), tmp_path)
    source = block(CLI, "sh", of="Serve metrics").replace("9100", str(free_port()))
    shown = run_shell("trap 'kill %1' EXIT\n" + block(CLI, "sh", of="The storage") + source + "trap - EXIT", tmp_path)
    assert 'orders_total{till="2"} 40.0' in shown
    assert "# the storage can be read" in shown


def test_the_block_of_a_program_counts(tmp_path: Path) -> None:
    """The commands run the program of the page, and show the count of all its processes."""
    (tmp_path / "crawl.py").write_text(block(CLI, "python", of="Run a program"))
    assert "\n-\t20\t" in run_shell(block(CLI, "sh", of="Run a program"), tmp_path)


def test_metrics_of_other_packages_are_kept_as_shown(tmp_path: Path) -> None:
    """The program of the page shows a metric that it made before and one that it made after."""
    printed = run_block(PAGES["install.md"].partition("```python\n")[2].partition("```")[0], tmp_path)
    assert {'orders_total{shop="north"} 2.0', "tills 3.0"} <= set(printed)


def test_the_journal_of_a_killed_process_is_the_one_shown(tmp_path: Path) -> None:
    """The program prints the records of the page, and the next process counts them."""
    of = "Bytes of a journal"
    printed = run_block(block(ARCHITECTURE, "python", of=of), tmp_path)
    assert [*map(same, printed)] == [*map(same, block(ARCHITECTURE, "text", of=of).splitlines())]


def test_the_table_of_a_journal_has_the_offsets_of_the_code() -> None:
    """Each row names a field of `layout`, and the byte where it begins."""
    rows = re.findall(r"^\| (\d+) \| (\S*) \| `([A-Z_]+)` \|", ARCHITECTURE, re.MULTILINE)
    begins = {name: getattr(layout, name) for _, _, name in rows if name != "MAGIC"}
    integers = {name for _, kind, name in rows if kind == "Q"}
    offsets = {name: at.start if isinstance(at, slice) else at * 8 if name in integers else at for name, at in begins.items()}
    assert {name: int(byte) for byte, _, name in rows} == {"MAGIC": 0, **offsets}
    assert {int(kind[:-1]) for _, kind, name in rows if name == "OWNER"} == {layout.OWNER.stop - layout.OWNER.start}
    assert f"`{layout.MAGIC.decode()}`" in ARCHITECTURE


def test_the_hashes_are_the_ones_shown(redis_server: RedisServer, tmp_path: Path) -> None:
    """The program finds in Redis the fields and values of the page."""
    of = "Fields of a storage"
    source = block(ARCHITECTURE, "python", of=of)
    assert "localhost:6379" in source
    printed = run_block(source.replace("localhost:6379", f"localhost:{redis_server.port}"), tmp_path)
    assert [*map(same, printed)] == [*map(same, block(ARCHITECTURE, "text", of=of).splitlines())]


def test_the_blocks_about_flask_guard_the_page_and_show_a_collector(tmp_path: Path) -> None:
    """The decorator of the page refuses clients without its session, and the collector of the registry is on the page."""
    ask = """
client = app.test_client()
print(client.get("/metrics").status_code)
with client.session_transaction() as session_of_client:
    session_of_client["is_staff"] = True
print(client.get("/metrics").status_code)
"""
    assert run_block(block(ACCESS, "python", of="Decorators") + ask, tmp_path) == ["403", "200"]
    show = 'print(app.test_client().get("/metrics").text)'
    assert "queue_length 3.0" in run_block(block(ACCESS, "python", of="Metrics that are not pdc's") + show, tmp_path)


def test_the_block_about_fastapi_guards_the_page(tmp_path: Path) -> None:
    """The dependency of the page refuses clients without its header, and the schema has the page under its tag."""
    ask = """
import asyncio, httpx
async def main():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for headers in ({}, {"X-Key": "change me"}):
            print((await client.get("/metrics", headers=headers)).status_code)
asyncio.run(main())
print(*app.openapi()["paths"]["/metrics"]["get"]["tags"])
"""
    printed = run_block(block(ACCESS, "python", of="Dependencies of FastAPI") + ask, tmp_path)
    assert printed == ["403", "200", "monitoring"]


COUNT = """
pdc.Counter("hits", "Hits.").inc()
print(pdc.generate_latest().decode())
"""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RedisServer]:
    """A cluster of one node, with the password of the page."""
    options = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()), "--requirepass", "secret")
    server = RedisServer(tmp_path, *options)
    with server.client(password="secret", decode_responses=True) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        wait_until(lambda: client.cluster("info")["cluster_state"] == "ok")
    yield server
    server.stop()


def test_the_block_of_a_cluster_counts(node: RedisServer, tmp_path: Path) -> None:
    """A counter is in the cluster that the page connects to."""
    source = block(REDIS, "python", of="Sentinel and Cluster", number=1)
    address = 'host="redis-1", port=6379'
    assert address in source
    printed = run_block(source.replace(address, f'host="127.0.0.1", port={node.port}') + COUNT, tmp_path)
    assert "hits_total 1.0" in printed


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[RedisServer]:
    """A Sentinel of a primary with the password and the name of the page."""
    primary = RedisServer(tmp_path, "--requirepass", "secret")
    settings = tmp_path / "sentinel.conf"
    settings.write_text(f"sentinel monitor mymaster 127.0.0.1 {primary.port} 1\nsentinel auth-pass mymaster secret\n")
    server = RedisServer(tmp_path, "--sentinel", settings=settings)
    yield server
    server.stop()
    primary.stop()


def test_the_block_of_a_sentinel_counts(sentinel: RedisServer, tmp_path: Path) -> None:
    """A counter is in the primary that the Sentinel of the page names."""
    source = block(REDIS, "python", of="Sentinel and Cluster")
    addresses = '("sentinel-1", 26379), ("sentinel-2", 26379)'
    assert addresses in source
    printed = run_block(source.replace(addresses, f'("127.0.0.1", {sentinel.port})') + COUNT, tmp_path)
    assert "hits_total 1.0" in printed


def test_the_block_of_labels_shows_them(tmp_path: Path) -> None:
    """The application counts a request with the four labels of the page."""
    ask = """
import pdc
app.test_client().get("/", headers={"X-Tenant": "a"})
print(pdc.generate_latest().decode())
"""
    labels = 'cache="hit",method="GET",route="/",status="200",tenant="a",type="text/html",zone="eu"'
    assert f"http_requests_total{{{labels}}} 1.0" in run_block(block(HTTP, "python", of="Labels") + ask, tmp_path)


def test_the_block_of_hooks_counts_bytes(tmp_path: Path) -> None:
    """The hook of the page counts the bytes of the answer, and its table has the fields of a record."""
    ask = """
import asyncio, httpx
async def main():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        await client.get("/nowhere")
asyncio.run(main())
print(pdc.generate_latest().decode())
"""
    expected = f'sent_bytes_total{{type="application/json"}} {float(len(NOT_FOUND))}'
    assert expected in run_block(block(HTTP, "python", of="Hooks") + ask, tmp_path)
    section = HTTP.partition("## Hooks\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \|", section, re.MULTILINE)
    assert re.findall(r"\w+", " ".join(rows)) == [*RequestRecord._fields]


def test_the_block_of_single_views_measures_them(tmp_path: Path) -> None:
    """The decorators of the page count and time a view, show an info, and leave a view out."""
    ask = """
import pdc
client = app.test_client()
client.get("/items/tea", headers={"X-Zone": "eu"})
client.get("/health")
print(pdc.generate_latest().decode())
"""
    printed = run_block(block(HTTP, "python", of="Single views of Flask") + ask, tmp_path)
    counted = 'http_requests_total{method="GET",route="/items/<name>",status="200"} 1.0'
    expected = ('app_info{version="1.0"} 1.0', 'item_seconds_count{zone="eu"} 1.0', 'items_total{status="200"} 1.0', counted)
    assert [line for line in expected if line not in printed] == []
    assert "/health" not in "".join(printed)


REQUESTS = """
tests:
  - interval: 1m
    input_series:
      - {series: 'http_requests_total{method="GET",route="/a",status="200"}', values: '0+30x10'}
      - {series: 'http_requests_total{method="GET",route="/a",status="500"}', values: '0+30x10'}
      - {series: 'http_request_duration_seconds_bucket{method="GET",route="/a",status="200",le="1"}', values: '0+60x10'}
      - {series: 'http_request_duration_seconds_bucket{method="GET",route="/a",status="200",le="+Inf"}', values: '0+60x10'}
      - {series: 'http_request_duration_seconds_sum{method="GET",route="/a",status="200"}', values: '0+15x10'}
      - {series: 'http_request_duration_seconds_count{method="GET",route="/a",status="200"}', values: '0+60x10'}
      - {series: 'http_requests_in_progress{method="GET"}', values: '2x10'}
      - {series: 'http_exceptions_total{method="GET",route="/a",exception="KeyError"}', values: '0+30x10'}
    promql_expr_test:
"""
"""One request per second for ten minutes: half of them fail, and each takes a quarter of a second."""


def test_the_queries_of_requests_answer(tmp_path: Path) -> None:
    """Prometheus answers each query of the page as its comment says."""
    section = HTTP.partition("\n### Queries\n")[2]
    queries = [line.partition("  #")[0].strip() for line in block("## Q\n" + section, "promql", of="Q").splitlines()]
    answers = [
        ('{route="/a"}', 1.0),
        ("{}", 0.5),
        ('{route="/a"}', 0.95),
        ("{}", 0.25),
        ("{}", 2.0),
        ('{route="/a",exception="KeyError"}', 0.5),
    ]
    rules = REQUESTS
    for query, (labels, value) in zip(queries, answers, strict=True):
        expected = {"expr": query, "eval_time": "10m", "exp_samples": [{"labels": labels, "value": value}]}
        rules += f"      - {json.dumps(expected)}\n"
    (tmp_path / "rules.yml").write_text(rules)
    done = subprocess.run(["promtool", "test", "rules", "rules.yml"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout


def test_the_page_about_native_histograms_is_right(tmp_path: Path) -> None:
    """Its program prints the lines that follow, and Prometheus knows the functions of its queries."""
    page = "## Page\n" + PAGES["native.md"].replace("\n## ", "\n### ")
    assert run_block(block(page, "python", of="Page"), tmp_path) == block(page, "text", of="Page").splitlines()
    queries = [line.partition("  #")[0].strip() for line in block(page, "promql", of="Page").splitlines()]
    rules = [{"record": "answer", "expr": query} for query in queries]
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "page", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", "rules.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr + done.stdout


def test_prometheus_accepts_the_configuration_of_the_docs(tmp_path: Path) -> None:
    """The page on access has the configuration of two targets, one with a token and one with a password."""
    (tmp_path / "prometheus.yml").write_text(block(ACCESS, "yaml", of="Prometheus"))
    checked = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr + checked.stdout


def test_the_page_for_users_of_other_exporters_names_what_exists() -> None:
    """Each option on it exists, has an allowed value where it has one, and each object of pdc can be imported."""
    page = PAGES["moving.md"]
    known = {f"PDC_{option.name.upper()}" for option in fields(DjangoOptions)}
    assert {*re.findall(r"PDC_[A-Z_]+", page)} - known == set()
    found = re.findall(r"`(PDC_[A-Z_]+) ?= ?\"?([^\"`\[(]+)\"?`", page)
    assert len(found) > len(NAMES)
    for name, text in found:
        DjangoOptions.load({name: text}, {})
    for path in re.findall(r"`@?((?:pdc|pdc_flask|pdc_django|pdc_starlette)\.[\w.]+)", page):
        assert pkgutil.resolve_name(path)


def test_the_block_of_jobs_counts_them(tmp_path: Path) -> None:
    """The program of the page counts two runs and their items."""
    of = "Runs of a job"
    printed = run_block(block(JOBS, "python", of=of) + "print(pdc.generate_latest().decode())", tmp_path)
    for sample in (
        'runs_total{job_name="clean_up",outcome="success"} 1.0',
        'items_total{job_name="clean_up",result="processed"} 20.0',
    ):
        assert f"job_{sample}" in printed
    assert 'job_items_total{job_name="nightly_import",result="rejected"} 1.0' in printed


def test_the_guide_for_contributors_names_what_exists() -> None:
    """Its table of the layout has paths that exist, and its index of behaviour every test file."""
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    _, layout_table, tests_table, *_ = re.split(r"^## (?:Layout|Tests|Commits)$", guide, flags=re.MULTILINE)
    paths = [path for row in re.findall(r"^\| (`.*?) \|", layout_table, re.MULTILINE) for path in re.findall(r"`(.+?)`", row)]
    assert [path for path in paths if not (ROOT / path).exists()] == []
    assert set(re.findall(r"`(test_\w+\.py)`", tests_table)) == {path.name for path in (ROOT / "tests").glob("test_*.py")}


def test_the_examples_have_the_files_that_they_read() -> None:
    """The commands of the page on the examples run as written: each file that they name is in the folder of its row."""
    page = (ROOT / "example_apps" / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\| `(\w+)` \| `python ([\w.]+) ([\w.]+)`", page, re.MULTILINE)
    assert commands
    for folder, *files in commands:
        assert [name for name in files if not (ROOT / "example_apps" / folder / name).is_file()] == []


def test_the_page_on_reliability_names_tests_that_exist() -> None:
    """Each test that the page names, by its whole name or the beginning of one, is in the suite, and so is each file."""
    files = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py")}
    names = re.findall(r"`(?:tests/)?(test_\w+(?:\.py|\.\.\.)?)`", PAGES["reliability.md"])
    assert names
    starts = [(name, "" if name.endswith("...") else r"\(") for name in names if not name.endswith(".py")]
    found = "\n".join(files.values())
    missing = [
        name for name, end in starts if not re.search(rf"^(?:async )?def {name.removesuffix('...')}{end}", found, re.MULTILINE)
    ]
    assert missing + [name for name in names if name.endswith(".py") and name not in files] == []

"""The code blocks of the README, each run as written in a process and a folder of its own."""

from __future__ import annotations

from pathlib import Path

from conftest import ROOT, RedisServer
from helpers import block, run_block

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_python_block_is_run_here() -> None:
    """The README has six blocks of Python: the tests below run them."""
    assert README.count("```python\n") == 6


def test_the_redis_block_prints_what_it_counted_and_stores_what_the_readme_shows(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """The counter is in an ordinary registry's text and, at 1 with a time of creation, in the hash that the README shows."""
    source = block(README, "python", of="Redis")
    assert "port=6379" in source
    printed = run_block(source.replace("port=6379", f"port={redis_server.port}"), tmp_path)
    assert 'requests_total{endpoint="/api",method="GET"} 1.0' in printed
    with redis_server.client(decode_responses=True) as client:
        stored = client.hgetall("prometheus_myapp_requests")
        assert 3500 < client.ttl("prometheus_myapp_requests") <= 3600
    shown = dict(line.split() for line in block(README, "text", of="Redis").splitlines())
    assert {field for field in stored if not field.startswith("#")} == set(shown)
    assert stored['_total:{"endpoint":"/api","method":"GET"}'] == shown['_total:{"endpoint":"/api","method":"GET"}'] == "1"


def test_the_sqlite_block_prints_a_histogram_and_clears_the_table(tmp_path: Path) -> None:
    """One observation is rendered; after the DELETE the file still exists and another process finds no sample in it."""
    printed = run_block(block(README, "python", of="SQLite"), tmp_path)
    assert 'latency_seconds_bucket{le="0.1"} 1.0' in printed
    assert "latency_seconds_count 1.0" in printed
    assert (tmp_path / "metrics.db").exists()
    left = run_block("import pdc; pdc.setup(sqlite='metrics.db'); print(pdc.generate_latest().decode())", tmp_path)
    assert [line for line in left if line and not line.startswith("#")] == []


def test_the_sqlite_table_is_the_one_the_readme_names(tmp_path: Path) -> None:
    """The table has the columns that the README names, and an observation is in one bucket only."""
    columns = "metric_key, subkey, value"
    assert f"`pdc_metrics({columns})`" in README
    source = block(README, "python", of="SQLite").replace('execute("DELETE FROM pdc_metrics")', 'execute("SELECT 1")')
    look = f"""
for row in pdc.get_sqlite_conn().execute("SELECT {columns} FROM pdc_metrics WHERE subkey LIKE '_bucket:%' AND value > 0"):
    print(*row)
"""
    assert run_block(source + look, tmp_path)[-1] == 'latency_seconds _bucket:{"le":"0.1"} 1.0'


EXTENSIONS = "Flask, Django, Starlette and FastAPI"
COUNTED = 'http_requests_total{method="GET",route="<unmatched>",status="404"} 1.0'


def test_the_flask_block_counts_requests(tmp_path: Path) -> None:
    """The Flask application counts a request and shows it at /metrics."""
    ask = """
client = app.test_client()
client.get("/nowhere").close()
print(client.get("/metrics").text)
"""
    assert COUNTED in run_block(block(README, "python", of=EXTENSIONS) + ask, tmp_path)


def test_the_django_block_counts_requests(tmp_path: Path) -> None:
    """The Django project counts a request and shows it at /metrics; its system checks find nothing."""
    settings, urls = block(README, "python", of=EXTENSIONS, number=1).split("# urls.py\n")
    (tmp_path / "urls.py").write_text(urls)
    more = "ROOT_URLCONF = 'urls'\nALLOWED_HOSTS = ['*']\nSECRET_KEY = 'x'\nUSE_TZ = True\n"
    (tmp_path / "settings.py").write_text(settings + more)
    ask = """
import os, sys
sys.path.insert(0, os.getcwd())
os.environ["DJANGO_SETTINGS_MODULE"] = "settings"
import django
django.setup()
from django.core.management import call_command
from django.test import Client
call_command("check", fail_level="WARNING")
client = Client()
client.get("/nowhere")
print(client.get("/metrics").content.decode())
"""
    assert COUNTED in run_block(ask, tmp_path)


def test_the_fastapi_block_counts_requests(tmp_path: Path) -> None:
    """The FastAPI application counts a request and shows it at /metrics."""
    ask = """
import asyncio, httpx
async def main():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        await client.get("/nowhere")
        print((await client.get("/metrics")).text)
asyncio.run(main())
"""
    assert COUNTED in run_block(block(README, "python", of=EXTENSIONS, number=2) + ask, tmp_path)


def test_the_view_block_shows_what_it_counted(tmp_path: Path) -> None:
    """The view of this block serves our counter and no metrics of one process; without its storage it is a 503."""
    ask = """
answer = app.test_client().get("/metrics")
print(answer.content_type)
print(answer.text)
setup(sqlite="/nonexistent/metrics.db", flush_interval=1, journal=False)
print(app.test_client().get("/metrics").status)
"""
    content_type, *printed = run_block(block(README, "python", of="Any other program") + ask, tmp_path)
    assert content_type.startswith("text/plain; version=0.0.4")
    assert "visits_total 1.0" in printed
    assert not any(line.startswith("python_info{") for line in printed)
    assert printed[-1] == "503 SERVICE UNAVAILABLE"

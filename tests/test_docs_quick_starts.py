"""The quick starts of docs/, as a reader follows them: the application, its server, a Prometheus that scrapes it, Redis."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import requests
from commands import ENVIRON
from conftest import ROOT, RedisServer, free_port, wait_until
from helpers import block, listens, run_block

PAGES = {name: (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") for name in ("flask", "django", "starlette")}
EACH_PAGE = pytest.mark.parametrize("name", PAGES)
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
ADDRESS = "127.0.0.1:8000"
"""The address of the application in the pages, which is the default of both servers."""
ASK_WSGI = """
client.get("/items/tea")
client.get("/items/coffee")
print(client.get("/metrics").text)
"""
ASK_ASGI = """
import asyncio, httpx
async def main():
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        for path in ("/items/tea", "/items/coffee", "/metrics"):
            answer = await client.get(path)
    print(answer.text)
asyncio.run(main())
"""
ASK = {
    "flask": f"client = app.test_client()\n{ASK_WSGI}",
    "django": f"""
import django
from django.conf import settings
settings.LOGGING = {{"version": 1, "loggers": {{"django": {{"level": "CRITICAL"}}}}}}
django.setup()
from django.core.management import call_command
from django.test import Client
call_command("check")
client = Client(SERVER_NAME="localhost")
{ASK_WSGI.replace(".text", ".content.decode()")}
""",
    "starlette": ASK_ASGI,
}


def commands_of(page: str, of: str, number: int = 0) -> str:
    """The commands of a section."""
    return block(page, "sh", of=of, number=number)


def write_application(name: str, folder: Path) -> str:
    """Write the files that the page names, and return the source of the module that makes the application."""
    page = PAGES[name]
    if name != "django":
        (folder / "shop.py").write_text(block(page, "python", of="The application"))
        return block(page, "python", of="The application")
    with shell(commands_of(page, "The project"), folder) as process:
        assert process.wait(60) == 0
    settings, urls = (block(page, "python", of="The project", number=number) for number in (0, 1))
    with (folder / "shop" / "settings.py").open("a") as file:
        file.write(settings)
    (folder / "shop" / "urls.py").write_text(urls)
    return "import os\nos.environ['DJANGO_SETTINGS_MODULE'] = 'shop.settings'\n"


@contextmanager
def shell(commands: str, folder: Path, **environ: str) -> Iterator[subprocess.Popen[str]]:
    """Run commands with the programs of this environment, and end them with all that they have started."""
    process = subprocess.Popen(
        ["bash", "-e", "-c", commands],
        cwd=folder,
        env={**ENVIRON, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.communicate(timeout=30)


@EACH_PAGE
def test_the_application_counts(name: str, tmp_path: Path) -> None:
    """The application of the page has the metrics that the page shows, and refuses an item that it does not have."""
    shown = run_block(write_application(name, tmp_path) + ASK[name], tmp_path)
    assert 'shop_views_total{item="tea"} 1.0' in shown
    assert "shop_search_seconds_count 2.0" in shown
    series = block(PAGES[name], "text", of="Run it").splitlines()[0].rpartition(" ")[0]
    assert {f"{series} 1.0", f"{series.replace('200', '404')} 1.0"} <= set(shown)


@pytest.mark.long
def test_an_application_of_starlette_counts(tmp_path: Path) -> None:
    """The application of Starlette alone counts, too."""
    source = block(PAGES["starlette"], "python", of="The application", number=1)
    assert 'http_requests_total{method="GET",route="/items/{name}",status="200"} 2.0' in run_block(source + ASK_ASGI, tmp_path)


@EACH_PAGE
def test_the_packages_of_the_page_exist(name: str) -> None:
    """The extras that the page installs are those of pyproject.toml, and its servers are those of the tests."""
    for of in ("Install", "Several hosts"):
        install = r"pip install 'prometheus-distributed-client\[(\w+)\]'(?: (\w+))?$"
        ((extra, server),) = re.findall(install, commands_of(PAGES[name], of), re.MULTILINE)
        assert re.search(rf"^{extra} = \[", PYPROJECT, re.MULTILINE)
        assert not server or f'"{server}' in PYPROJECT


def test_all_pages_scrape_alike() -> None:
    """The section on Prometheus is the same on each page."""
    (section,) = {page.partition("\n## Scrape it\n")[2].partition("\n## ")[0] for page in PAGES.values()}
    assert section


def values(prometheus: str, query: str) -> list[float]:
    """The values of all series with which Prometheus answers; none while it starts."""
    found = requests.get(f"http://{prometheus}/api/v1/query", params={"query": query}, timeout=10)
    return [float(series["value"][1]) for series in found.json()["data"]["result"]] if found.ok else []


@pytest.mark.long
@EACH_PAGE
def test_a_reader_sees_metrics_in_prometheus(name: str, tmp_path: Path) -> None:
    """The commands of the page start the server, send requests, and show the lines of the page; each query has an answer."""
    page, at, prometheus = PAGES[name], f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    ports = {"GUNICORN_CMD_ARGS": f"--bind {at}", "UVICORN_PORT": at.rpartition(":")[2]}
    write_application(name, tmp_path)
    (tmp_path / "prometheus.yml").write_text(block(page, "yaml", of="Scrape it").replace(ADDRESS, at).replace("5s", "1s"))
    watch = f"{commands_of(page, 'Scrape it').strip()} --web.listen-address={prometheus}"
    with ExitStack() as stack:
        stack.enter_context(shell(commands_of(page, "Run it"), tmp_path, **ports))
        wait_until(lambda: listens(int(at.rpartition(":")[2])), 30)
        with shell(commands_of(page, "Run it", 1).replace(ADDRESS, at), tmp_path) as client:
            printed = client.communicate(timeout=60)[0].splitlines()
        assert set(block(page, "text", of="Run it").splitlines()) <= set(printed)
        stack.enter_context(shell(commands_of(page, "Scrape it", 1).replace(ADDRESS, at), tmp_path))
        stack.enter_context(shell(watch, tmp_path))
        wait_until(lambda: listens(int(prometheus.rpartition(":")[2])), 30)
        queries = [line.partition("  #")[0] for line in block(page, "promql", of="Scrape it").splitlines()]
        wait_until(lambda: all(any(value > 0 for value in values(prometheus, query)) for query in queries), 60)


@pytest.mark.long
@EACH_PAGE
def test_a_reader_keeps_the_metrics_in_redis(name: str, redis_server: RedisServer, tmp_path: Path) -> None:
    """The last command of the page starts the same server with a Redis, which has the counts under the prefix of the page."""
    at = f"127.0.0.1:{free_port()}"
    ports = {"GUNICORN_CMD_ARGS": f"--bind {at}", "UVICORN_PORT": at.rpartition(":")[2]}
    write_application(name, tmp_path)
    command = commands_of(PAGES[name], "Several hosts").splitlines()[1]
    assert command.endswith(commands_of(PAGES[name], "Run it").strip())
    with shell(command.replace("localhost:6379", f"localhost:{redis_server.port}"), tmp_path, **ports):
        wait_until(lambda: listens(int(at.rpartition(":")[2])), 30)
        assert requests.get(f"http://{at}/items/tea", timeout=10).ok
        with redis_server.client() as client:
            wait_until(lambda: client.exists("prometheus_shop_shop_views"))
    assert not (tmp_path / "metrics.db").exists()

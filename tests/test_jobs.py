"""The examples that are no web servers, started as in their docstrings, and scraped from another process."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import VERSION, Celery
from conftest import ROOT, RedisServer, free_port, wait_until

import pdc
from pdc.testing import value_of

EXAMPLES = ROOT / "example_apps"
JOB = EXAMPLES / "cron_job" / "job.py"
HANDLER = EXAMPLES / "serverless" / "handler.py"
TASKS = EXAMPLES / "celery_worker" / "tasks.py"

Scrape = Callable[[], dict[str, float]]


@pytest.fixture
def environment(storage: dict[str, Any]) -> dict[str, str]:
    """The environment in which a user starts the examples."""
    if "sqlite" in storage:
        return environment_with(PDC_SQLITE_PATH=storage["sqlite"])
    return environment_with(PDC_REDIS_URL=storage["redis"], PDC_REDIS_PREFIX=storage["redis_prefix"])


def environment_with(**variables: str) -> dict[str, str]:
    """This process's environment without the variables of the examples' metrics and tasks, with those given."""
    ours = ("PDC_", "CELERY_", "RQ_", "DRAMATIQ_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**kept, "PYTHONPATH": str(ROOT), **variables}


@contextmanager
def running(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that writes to `log`, and is stopped at the end."""
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, text=True, **options)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(30)


@pytest.fixture(params=[JOB], ids=lambda path: path.parent.name)
def scrape(request: pytest.FixtureRequest, environment: dict[str, str], tmp_path: Path) -> Iterator[Scrape]:
    """Scrape the process of an example's docstring: the samples without pdc's, `_created`, `_sum` and `_bucket`."""
    (source,) = re.findall(r'^    python -c "(.*)"$', request.param.read_text(), re.MULTILINE)
    port = free_port()
    command = [sys.executable, "-W", "error", "-c", source.replace("9100", str(port))]

    def samples() -> dict[str, float]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
        except urllib.error.HTTPError as error:
            if error.code == HTTPStatus.SERVICE_UNAVAILABLE and b"nobody writes to" in error.read():
                return {}
            raise
        found = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
        return {name: value for name, value in found.items() if not re.search("^pdc_|_(created|sum|bucket)({|$)", name)}

    def answers() -> bool:
        try:
            samples()
        except OSError:
            return False
        return True

    with running(command, tmp_path / "scrape.log", env=environment, cwd=tmp_path):
        wait_until(answers)
        yield samples


def run(arguments: list[str | Path], environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run an example to its end."""
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_cron_job_counts_on_from_run_to_run(environment: dict[str, str], tmp_path: Path, scrape: Scrape) -> None:
    """Rows, runs and time of a job that failed and then ran twice add up, and the last success is that of the last run."""
    failed = run([JOB, "prices.csv"], environment, tmp_path)
    assert (failed.returncode, "FileNotFoundError" in failed.stderr) == (1, True)
    started = scrape().pop('job_last_start_timestamp_seconds{job_name="prices"}')
    assert scrape() == {
        'job_runs_total{job_name="prices",outcome="failure"}': 1.0,
        'job_runs_total{job_name="prices",outcome="success"}': 0.0,
        'job_duration_seconds_count{job_name="prices",outcome="failure"}': 1.0,
        'job_last_start_timestamp_seconds{job_name="prices"}': started,
    }
    (tmp_path / "prices.csv").write_text("item,price\ntea,3\ncake,4.5\nsalt,\n")
    assert run([JOB, "prices.csv"], environment, tmp_path).returncode == 0
    between = time.time()
    assert run([JOB, "prices.csv"], environment, tmp_path).returncode == 0
    found = scrape()
    times = [found.pop(f'job_last_{event}_timestamp_seconds{{job_name="prices"}}') for event in ("start", "success")]
    assert between < times[0] < times[1] < time.time()
    assert found == {
        'job_items_total{job_name="prices",result="processed"}': 4.0,
        'job_items_total{job_name="prices",result="rejected"}': 2.0,
        'job_runs_total{job_name="prices",outcome="failure"}': 1.0,
        'job_runs_total{job_name="prices",outcome="success"}': 2.0,
        'job_duration_seconds_count{job_name="prices",outcome="failure"}': 1.0,
        'job_duration_seconds_count{job_name="prices",outcome="success"}': 2.0,
    }


def test_the_alert_rules_of_the_cron_job_are_rules(tmp_path: Path) -> None:
    """Prometheus reads the rules of the docstring."""
    rules = re.findall(r"^    (?:- alert|  expr): .*\n|^        or .*\n", JOB.read_text(), re.MULTILINE)
    (tmp_path / "rules.yml").write_text("groups:\n- name: jobs\n  rules:\n" + "".join(rules))
    checked = subprocess.check_output(["promtool", "check", "rules", "rules.yml"], cwd=tmp_path, text=True, timeout=60)
    assert "2 rules found" in checked


INVOKE = """
import os, signal, sys
import handler

print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    handler.handler({"items": ["tea", "cake"]}, None)
try:
    handler.handler({"items": ["nothing"]}, None)
except KeyError:
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("scrape", [HANDLER], ids=["serverless"], indirect=True)
def test_a_function_that_is_killed_once_it_returned(environment: dict[str, str], tmp_path: Path, scrape: Scrape) -> None:
    """Of four processes at once, each killed after its last call, every cold start, call and error is counted."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", INVOKE],
            env={**environment, "PYTHONPATH": f"{ROOT}:{HANDLER.parent}"},
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [-signal.SIGKILL] * 4
    (tmp_path / "event.json").write_text('{"items": ["tea", "cake"]}')
    answer = run([HANDLER, "event.json"], environment, tmp_path)
    assert json.loads(answer.stdout) == {"statusCode": 200, "body": '{"total": 7}'}
    assert {name: value for name, value in scrape().items() if "timestamp" not in name} == {
        "function_cold_starts_total": 5.0,
        'job_runs_in_progress{job_name="prices"}': 0.0,
        'job_runs_total{job_name="prices",outcome="success"}': 21.0,
        'job_runs_total{job_name="prices",outcome="failure"}': 4.0,
        'job_duration_seconds_count{job_name="prices",outcome="success"}': 21.0,
        'job_duration_seconds_count{job_name="prices",outcome="failure"}': 4.0,
    }


@pytest.mark.parametrize("example", [JOB, HANDLER], ids=lambda path: path.parent.name)
def test_metrics_without_a_living_process_do_not_expire(example: Path, redis_server: RedisServer, tmp_path: Path) -> None:
    """Metrics of programs that run for seconds stay in Redis until they are deleted."""
    (tmp_path / "input").write_text('{"items": []}')
    run([example, "input"], environment_with(PDC_REDIS_URL=redis_server.url), tmp_path)
    with redis_server.client() as client:
        assert {client.ttl(key) for key in client.scan_iter()} == {-1}


@pytest.mark.parametrize("scrape", [TASKS], ids=["celery_worker"], indirect=True)
def test_celery_tasks_are_counted_for_any_end_of_their_process(
    environment: dict[str, str], tmp_path: Path, scrape: Scrape, redis_server: RedisServer
) -> None:
    """Tasks that succeed, fail, retry or stop count once, in processes that end after two tasks or with the worker.

    One worker sends nothing before its processes end, the other one sends all the time. Celery before 5.7 does not tell
    the queue of a task that it kills for its hard time limit.
    """
    killed_in = "living" if VERSION >= (5, 7) else ""
    broker = redis_server.url.removesuffix("/0") + "/1"
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "--concurrency", "2", "--loglevel", "WARNING"]
    commands = {
        "600": [*command, "--queues", "ending", "--hostname", "ending@%h", "--max-tasks-per-child", "2"],
        "0.05": [*command, "--queues", "living", "--hostname", "living@%h"],
    }
    workers = [
        running(
            arguments,
            tmp_path / f"{interval}.log",
            env={**environment, "CELERY_BROKER_URL": broker, "PDC_FLUSH_INTERVAL": interval},
            cwd=TASKS.parent,
        )
        for interval, arguments in commands.items()
    ]
    with Celery(broker=broker) as app, redis.Redis.from_url(broker) as client, workers[0] as ending, workers[1] as living:
        for arguments in (["tea"], ["tea"], ["tea"], ["nothing"], ["cake"]):
            app.send_task("tasks.order", arguments, queue="ending")
        for _ in range(2):
            app.send_task("tasks.report", [0.5], queue="ending")
        app.send_task("tasks.pay", [3], queue="living")
        app.send_task("tasks.report", [60], queue="living", time_limit=2)

        wait_until(lambda: scrape().get('celery_tasks_in_progress{queue="living",task="tasks.report"}') == 1.0, 30)
        wait_until(lambda: not client.exists("ending", "unacked"), 30)  # every task has started, the last are running
        ending.terminate()
        wait_until(lambda: scrape().get('celery_tasks_total{queue="living",state="success",task="tasks.pay"}') == 1.0, 30)
        failed = f'celery_tasks_total{{queue="{killed_in}",state="failure",task="tasks.report"}}'
        wait_until(lambda: scrape().get(failed) == 1.0, 30)
        living.terminate()
        assert [worker.wait(30) for worker in (ending, living)] == [0, 0]
    assert {name: value for name, value in scrape().items() if value} == {
        'celery_tasks_received_total{queue="ending",task="tasks.order"}': 5.0,
        'celery_tasks_received_total{queue="ending",task="tasks.report"}': 2.0,
        'celery_tasks_received_total{queue="living",task="tasks.report"}': 1.0,
        'celery_tasks_received_total{queue="living",task="tasks.pay"}': 3.0,
        'celery_tasks_sent_total{queue="living",task="tasks.pay"}': 2.0,
        'celery_tasks_total{queue="ending",state="success",task="tasks.order"}': 4.0,
        'celery_tasks_total{queue="ending",state="failure",task="tasks.order"}': 1.0,
        'celery_tasks_total{queue="ending",state="success",task="tasks.report"}': 2.0,
        failed: 1.0,
        'celery_tasks_total{queue="living",state="success",task="tasks.pay"}': 1.0,
        'celery_tasks_total{queue="living",state="retry",task="tasks.pay"}': 2.0,
        f'celery_task_exceptions_total{{exception="TimeLimitExceeded",queue="{killed_in}",task="tasks.report"}}': 1.0,
        'celery_task_exceptions_total{exception="ValueError",queue="ending",task="tasks.order"}': 1.0,
        'celery_task_queue_time_seconds_count{queue="living",task="tasks.pay"}': 2.0,
        'celery_task_duration_seconds_count{queue="ending",state="success",task="tasks.order"}': 4.0,
        'celery_task_duration_seconds_count{queue="ending",state="failure",task="tasks.order"}': 1.0,
        'celery_task_duration_seconds_count{queue="ending",state="success",task="tasks.report"}': 2.0,
        'celery_task_duration_seconds_count{queue="living",state="success",task="tasks.pay"}': 1.0,
        'celery_task_duration_seconds_count{queue="living",state="retry",task="tasks.pay"}': 2.0,
    }


SAME_TASK_TWICE = """
import threading
import tasks

tasks.app.finalize()  # which Celery does not do in two threads at once

def attempt(seconds):
    tasks.report.apply(args=[seconds], task_id="one")

threads = [threading.Thread(target=attempt, args=[seconds]) for seconds in (0.2, 0.4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("scrape", [TASKS], ids=["celery_worker"], indirect=True)
def test_celery_attempts_that_overlap_are_timed_each(environment: dict[str, str], tmp_path: Path, scrape: Scrape) -> None:
    """An attempt that starts in another thread before the previous one has ended, with the same id, is timed apart."""
    ended = run(["-c", SAME_TASK_TWICE], {**environment, "PYTHONPATH": f"{ROOT}:{TASKS.parent}"}, tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert scrape() == {
        'celery_tasks_total{queue="",state="success",task="tasks.report"}': 2.0,
        'celery_tasks_total{queue="",state="failure",task="tasks.report"}': 0.0,
        'celery_tasks_total{queue="",state="retry",task="tasks.report"}': 0.0,
        'celery_task_duration_seconds_count{queue="",state="success",task="tasks.report"}': 2.0,
    }


@pytest.mark.parametrize(
    ("name", "variable", "send", "work"),
    [
        ("rq_worker", "RQ_REDIS_URL", "jobs.queue.enqueue(jobs.order, {item!r})", "rq.cli worker -c jobs --burst"),
        ("dramatiq_worker", "DRAMATIQ_BROKER_URL", "actors.order.send({item!r})", "dramatiq actors --processes 2 --threads 4"),
    ],
    ids=["rq", "dramatiq"],
)
def test_workers_of_other_queues_count(
    name: str, variable: str, send: str, work: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    """The example counts orders that succeed and that fail, in processes that another one has sent them to."""
    folder, library = EXAMPLES / name, name.removesuffix("_worker")
    (module,) = (path.stem for path in folder.glob("*.py"))
    database = str(tmp_path / "metrics.db")
    url = redis_server.url.removesuffix("/0") + "/1"
    environment = {**environment_with(PDC_SQLITE_PATH=database), "PYTHONPATH": f"{ROOT}:{folder}", variable: url}
    source = "; ".join([f"import {module}", *(send.format(item=item) for item in ("tea", "cake", "nothing"))])
    assert run(["-c", source], environment, tmp_path).stderr == ""
    pdc.setup(sqlite=database)
    with running([sys.executable, "-m", *work.split()], tmp_path / "worker.log", env=environment, cwd=folder):
        wait_until(
            lambda: (
                {state: value_of(f"{library}_tasks_total", state=state, queue="default") for state in ("success", "failure")}
                == {"success": 2.0, "failure": 1.0}
            ),
            30,
        )
    assert value_of(f"{library}_tasks_sent_total", task=f"{module}.order" if library == "rq" else "order") == 3.0

"""docs/jobs.md: the workers of queues of the page count their tasks, and have the metrics of docs/metrics.md."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, RedisServer
from helpers import block, run_block

PAGE, METRICS = ((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("jobs.md", "metrics.md"))
FAMILIES = {
    *("tasks_sent", "tasks_received", "tasks", "task_exceptions", "task_duration_seconds", "task_queue_time_seconds"),
    *("tasks_in_progress", "workers", "queue_workers", "queue_messages"),
}
RUNS = {
    "celery": """
@app.task
def order(): return "ordered"
order.apply()
pdc.celery.instrument(app)
""",
    "rq": """
from rq import SimpleWorker
order.__module__ = "shop"
queue.enqueue(order, "tea")
class Worker(SimpleWorker):
    def subscribe(self): pass
    def unsubscribe(self): pass
Worker([queue], connection=queue.connection).work(burst=True)
""",
    "dramatiq": """
@dramatiq.actor
def order(): pass
order.send()
worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
worker.start()
broker.join("default", timeout=10_000)
worker.stop()
broker.close()
""",
}
"""By library: a program after the block of the page, which performs one task."""
TITLES = {"celery": "Celery", "rq": "RQ", "dramatiq": "Dramatiq"}


@pytest.mark.parametrize("library", RUNS)
def test_the_block_of_a_library_counts_a_task(library: str, tmp_path: Path, redis_server: RedisServer) -> None:
    """The application of the page counts a task, and has the metrics of the table."""
    source = block(PAGE, "python", of=TITLES[library]).replace("redis://localhost:6379/1", redis_server.url)
    (tmp_path / "shop.py").write_text("def order(item): return item\n")
    printed = run_block(f"{source}{RUNS[library]}print(pdc.generate_latest().decode())", tmp_path)
    ended = [
        line for line in printed if re.match(rf'{library}_tasks_total{{queue="\w*",state="success",task="[\w.]+"}} 1.0', line)
    ]
    assert len(ended) == 1
    families = {line.split()[2] for line in printed if re.match(f"# TYPE {library}_.*(?<!_created) ", line)}
    named = {each.removeprefix(f"{library}_").removesuffix("_total") for each in families}
    assert (named - FAMILIES, FAMILIES - named - {"queue_messages", "task_queue_time_seconds"}) == (set(), set())
    table = re.findall(rf"^\| `{library}_(\w+)` \|", METRICS, re.MULTILINE)
    assert {each.removesuffix("_total") for each in table} == FAMILIES


SERIES = """
rule_files: []
evaluation_interval: 1m
tests:
- interval: 1m
  input_series:
  - {series: 'rq_tasks_total{state="failure",task="order"}', values: "0+1x60"}
  - {series: 'rq_tasks_total{state="success",task="order"}', values: "0+3x60"}
  - {series: 'rq_task_queue_time_seconds_bucket{queue="default",le="1"}', values: "0+9x60"}
  - {series: 'rq_task_queue_time_seconds_bucket{queue="default",le="+Inf"}', values: "0+10x60"}
  promql_expr_test:
"""
ANSWERS = {'{task="order"}': 0.25, '{queue="default"}': 1.0}


def test_the_queries_of_the_page_answer(tmp_path: Path) -> None:
    """Prometheus answers each query as the page says."""
    rules = SERIES
    for query, (labels, value) in zip(block(PAGE, "promql", of="Workers of queues").splitlines(), ANSWERS.items(), strict=True):
        samples = [{"labels": labels, "value": value}]
        rules += f"  - {json.dumps({'expr': query, 'eval_time': '1h', 'exp_samples': samples})}\n"
    (tmp_path / "rules.yml").write_text(rules)
    done = subprocess.run(["promtool", "test", "rules", "rules.yml"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout

"""The manifests of `example_apps/`: their schemas, and their containers as plain processes with a real Prometheus."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import containers
import pytest
from conftest import ROOT, wait_until
from containers import (
    DOCKERFILE,
    EXAMPLES,
    Container,
    Host,
    Prometheus,
    Running,
    instruction,
    manifests,
    of_compose,
    of_kubernetes,
)
from helpers import block

pytestmark = pytest.mark.long

COMPOSE, KUBERNETES = EXAMPLES / "compose", EXAMPLES / "kubernetes"
PAGE = (ROOT / "docs" / "containers.md").read_text(encoding="utf-8")
REQUESTS = 60
"""To each replica."""
COUNTED = "sum(http_requests_total)"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host for the containers of a test."""
    with containers.host(tmp_path) as opened:
        yield opened


def send(replicas: list[Running], number: int = REQUESTS) -> int:
    """Send so many requests to each replica, at once, and return how many were answered."""
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda replica: replica.get("/"), replicas * number))
    assert all(answer.status_code == 200 for answer in answers)
    return len(answers)


def start_shop(host: Host, redis: Container, shop: Container, replicas: int) -> list[Running]:
    """Start Redis and so many replicas of the shop."""
    host.start_redis(redis)
    started = [host.start("app", shop) for _ in range(replicas)]
    for each in started:
        wait_until(partial(each.is_ready, "/"), 60)
    return started


def test_a_composition_counts_every_request(host: Host) -> None:
    """Prometheus shows exactly the requests to all replicas, also after one was killed, and another one replaced."""
    app, metrics = of_compose("app"), of_compose("metrics")
    replicas = start_shop(host, of_compose("redis"), app, 3)
    serving = host.start("metrics", metrics)
    wait_until(serving.is_healthy, 30)
    config = (COMPOSE / "prometheus.yml").read_text(encoding="utf-8")
    prometheus = host.start_prometheus(of_compose("prometheus"), config, [serving.port])
    sent = len(replicas) + send(replicas)  # each was asked once whether it is ready
    assert replicas[0].get("/metrics").status_code == 404
    prometheus.wait_for(COUNTED, sent + 1)  # and the one for the page that is not there
    sent += send([replicas[1]])
    replicas[1].kill()
    replicas[1] = host.start("app", app)
    wait_until(lambda: replicas[1].is_ready("/"), 60)
    assert replicas[2].stop() == 0
    replicas[2] = host.start("app", app)
    wait_until(lambda: replicas[2].is_ready("/"), 60)
    sent += 2 + send(replicas)
    prometheus.wait_for(COUNTED, sent + 1)
    prometheus.wait_for('sum(up{job="shop"})', 1)
    assert [each.stop() for each in (*replicas, serving)] == [0, 0, 0, 0]


def test_pods_count_every_request(host: Host) -> None:
    """The containers of the pods count exactly, and their probes answer: also a lost Redis leaves the process alive."""
    metrics = of_kubernetes("metrics")
    replicas = start_shop(host, of_kubernetes("redis"), of_kubernetes("shop"), 3)
    serving = host.start("metrics", metrics)
    wait_until(lambda: serving.is_ready("/healthz"), 30)
    prometheus = _start_prometheus(host, [serving.port])
    prometheus.wait_for(COUNTED, len(replicas) + send(replicas))
    host.running[0].kill()
    assert (serving.get("/healthz").status_code, serving.process.poll()) == (503, None)
    prometheus.wait_for("sum(up)", 0)


def _start_prometheus(host: Host, ports: list[int]) -> Prometheus:
    config = "global: {scrape_interval: 1s}\n" + (KUBERNETES / "prometheus.yml").read_text(encoding="utf-8")
    return host.start_prometheus(of_compose("prometheus"), config, ports)


def test_a_sum_over_scraped_pods_counts_every_request_as_often(host: Host) -> None:
    """Where each of three pods is scraped, sum() is three times the requests; the maximum over the instances is right."""
    shop = of_kubernetes("shop").with_environment(PDC_METRICS_PATH="/metrics")
    replicas = start_shop(host, of_kubernetes("redis"), shop, 3)
    prometheus = _start_prometheus(host, [each.port for each in replicas])
    sent = len(replicas) + send(replicas)
    prometheus.wait_for(COUNTED, 3 * sent)
    whole, rate = block(PAGE, "promql", of="One storage, one target").splitlines()
    prometheus.wait_for(whole, sent)
    wait_until(lambda: prometheus.query(rate) is not None)  # it needs two scrapes


def test_the_page_names_files_that_are_there() -> None:
    """Each path of the page exists, and its tables have lines of the composition."""
    for name in re.findall(r"(example_apps/[\w/.]+)", PAGE):
        assert (ROOT / name).exists(), name
    assert {path.name for path in KUBERNETES.iterdir()} == {
        "kustomization.yaml",
        *re.findall(r"^\| `(\w+\.ya?ml)` \|", PAGE, re.MULTILINE),
    }
    composition = (COMPOSE / "compose.yaml").read_text(encoding="utf-8")
    for line in ("PDC_METRICS_PATH: none", "read_only: true", 'tmpfs: ["/tmp"]', "stop_grace_period: 30s"):
        assert f"`{line}`" in PAGE
        assert line in composition


def test_variables_of_a_service_are_no_options(tmp_path: Path) -> None:
    """An application beside a Service `pdc-metrics` starts and counts: the variables that Kubernetes sets are no options."""
    assert "`PDC_METRICS_PORT=tcp://10.0.0.1:9100`" in PAGE
    linked = {
        "PDC_METRICS_SERVICE_HOST": "10.0.0.1",
        "PDC_METRICS_SERVICE_PORT": "9100",
        "PDC_METRICS_SERVICE_PORT_METRICS": "9100",
        "PDC_METRICS_PORT": "tcp://10.0.0.1:9100",
        "PDC_METRICS_PORT_9100_TCP": "tcp://10.0.0.1:9100",
        "PDC_METRICS_PORT_9100_TCP_PROTO": "tcp",
        "PDC_METRICS_PORT_9100_TCP_PORT": "9100",
        "PDC_METRICS_PORT_9100_TCP_ADDR": "10.0.0.1",
    }
    source = (
        "import flask, pdc_flask\n"
        "app = flask.Flask('shop')\n"
        "pdc_flask.PrometheusMetrics(app)\n"
        "app.test_client().get('/none')\n"
        "print(app.test_client().get('/metrics').text)"
    )
    environment = {**os.environ, **linked, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert 'http_requests_total{method="GET",route="<unmatched>",status="404"} 1.0' in done.stdout


def validate(*command: str) -> None:
    """Run a validator that the group `test` of pyproject.toml installs."""
    program = Path(sys.executable).with_name(command[0])
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_manifests_have_the_schemas_of_their_platforms() -> None:
    """Compose, Kubernetes and the Prometheus operator take the files, and know each of their fields."""
    validate("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE / "compose.yaml"))
    for name in manifests(KUBERNETES / "kustomization.yaml")[0]["resources"]:
        validate("kubernetes-validate", "--strict", str(KUBERNETES / name))
    schema = ROOT / "tests" / "servicemonitor.json"
    validate("check-jsonschema", "--schemafile", str(schema), str(KUBERNETES / "servicemonitor.yaml"))


def test_the_manifests_name_each_other() -> None:
    """Services select pods and name ports that are there; the monitor and the network policy select them, too."""
    documents = containers.kubernetes()
    pods = [
        document["spec"]["template"]
        for document in documents
        if "template" in document["spec" if "spec" in document else "stringData"]
    ]
    services = [document for document in documents if document["kind"] == "Service"]
    for service in services:
        (pod,) = [pod for pod in pods if service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()]
        ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    (monitor,) = manifests(KUBERNETES / "servicemonitor.yaml")
    (service,) = [each for each in services if monitor["spec"]["selector"]["matchLabels"] == each["metadata"].get("labels")]
    assert {each["port"] for each in monitor["spec"]["endpoints"]} == {port["name"] for port in service["spec"]["ports"]}
    (policy,) = [document for document in documents if document["kind"] == "NetworkPolicy"]
    (source,) = policy["spec"]["ingress"][0]["from"]
    allowed = [pod for pod in pods if source["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()]
    assert {pod["metadata"]["labels"]["app"] for pod in allowed} == {"shop", "metrics"}


def test_pods_run_without_rights() -> None:
    """Each container has a read-only root, no capabilities and another user than root."""
    found: list[Any] = [
        each["spec"]["template"]["spec"] for each in containers.kubernetes() if "template" in each.get("spec", {})
    ]
    assert len(found) == 3
    for pod in found:
        assert pod["securityContext"]["runAsNonRoot"]
        for each in pod["containers"]:
            context = each["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert context["capabilities"] == {"drop": ["ALL"]}


def test_the_image_has_what_it_installs() -> None:
    """The Dockerfile copies what the build may read, and installs extras that exist; its command is that of the pods."""
    kept = re.findall(r"^!(.*)$", (COMPOSE / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert all(list(ROOT.glob(pattern)) for pattern in kept)
    assert {"pyproject.toml", "README.md", "LICENSE", "pdc", "pdc_*", "example_apps/flask_app"} == set(kept)
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (extras,) = re.findall(r"'/src\[(.*?)\]'", DOCKERFILE)
    assert all(re.search(rf"^{extra} = \[", pyproject, re.MULTILINE) for extra in extras.split(","))
    assert json.loads(instruction("CMD")) == of_kubernetes("shop").command
    assert instruction("USER") == "10001"

"""The containers of the manifests in `example_apps/`, run as plain processes of the loopback interface."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import requests
from conftest import ROOT, free_port, wait_until

EXAMPLES = ROOT / "example_apps"
DOCKERFILE = (EXAMPLES / "compose" / "Dockerfile").read_text(encoding="utf-8")
COMMANDS = {name: [sys.executable, "-m", name] for name in ("gunicorn", "pdc")} | {"python": [sys.executable]}
"""The commands of the image `shop`, which are those of the tests."""
FOLDERS = {"/app": EXAMPLES / "flask_app"}
"""The folders that the image has."""


def manifests(path: Path) -> list[Any]:
    """The documents of a YAML file."""
    import yaml  # only here: long tests alone read manifests, and other environments are without it

    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def instruction(name: str) -> str:
    """The one instruction of that name in the Dockerfile."""
    (found,) = re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)
    return str(found)


class Container(NamedTuple):
    """A container of a manifest."""

    command: list[str]
    environment: dict[str, str]
    check: Sequence[str] = ()
    """The command of its health check."""
    grace: float = 10.0
    """How long the platform waits for its end."""

    def with_environment(self, **variables: str) -> Container:
        """The same container with more variables."""
        return self._replace(environment={**self.environment, **variables})


def of_compose(name: str) -> Container:
    """A service of compose.yaml; one without a command has that of its image."""
    (compose,) = manifests(EXAMPLES / "compose" / "compose.yaml")
    service = compose["services"][name]
    command = (
        service.get("command")
        or {"shop": json.loads(instruction("CMD")), "prom/prometheus:v3.5.3": PROMETHEUS}[service["image"]]
    )
    grace = service.get("stop_grace_period", "10s")
    return Container(
        command, service.get("environment", {}), service.get("healthcheck", {}).get("test", [])[1:], float(grace[:-1])
    )


PROMETHEUS = ["prometheus", "--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]
"""The command of its image."""


def of_kubernetes(name: str) -> Container:
    """The container of a Deployment or StatefulSet, with the variables of its Secret."""
    found = {(document["kind"], document["metadata"]["name"]): document for document in kubernetes()}
    workload = next(document for (kind, of), document in found.items() if of == name and kind in ("Deployment", "StatefulSet"))
    pod = workload["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    environment: dict[str, str] = {}
    for source in container.get("envFrom", []):
        environment |= found["Secret", source["secretRef"]["name"]]["stringData"]
    environment |= {variable["name"]: variable["value"] for variable in container.get("env", [])}
    return Container(container["args"], environment, grace=pod.get("terminationGracePeriodSeconds", 30))


def kubernetes() -> list[Any]:
    """All documents that `kubectl apply --kustomize` applies."""
    (kustomization,) = manifests(EXAMPLES / "kubernetes" / "kustomization.yaml")
    return [document for name in kustomization["resources"] for document in manifests(EXAMPLES / "kubernetes" / name)]


class Running:
    """A container that runs: its process, and the port under which others reach it."""

    def __init__(
        self, container: Container, folder: Path, port: int, places: Mapping[str, str], arguments: Sequence[str]
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.container, self.port, self.places, self.log = container, port, places, folder / "log"
        name, *words = container.command
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PDC_")}
        self.environment = {
            **kept,
            "PYTHONPATH": str(ROOT),
            **{key: self.placed(value) for key, value in container.environment.items()},
        }
        self._output = self.log.open("w")
        self.process = subprocess.Popen(
            [*COMMANDS.get(name, [name]), *map(self.placed, words), *arguments],
            cwd=FOLDERS.get(instruction("WORKDIR") if name in COMMANDS else "", folder),
            env=self.environment,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def placed(self, text: str) -> str:
        """The text with addresses and folders of this host."""
        pattern = "|".join(map(re.escape, self.places))
        return re.sub(pattern, lambda found: self.places[found[0]], text)

    def get(self, path: str) -> requests.Response:
        """Send a request on a connection of its own."""
        return requests.get(f"http://127.0.0.1:{self.port}{path}", timeout=30)

    def is_ready(self, path: str) -> bool:
        """True where it answers a request for that path well."""
        assert self.process.poll() is None, self.log.read_text()
        with suppress(requests.ConnectionError):
            return self.get(path).ok
        return False

    def is_healthy(self) -> bool:
        """True where the command of its health check succeeds."""
        name, *words = self.container.check
        command = [*COMMANDS.get(name, [name]), *map(self.placed, words)]
        return subprocess.run(command, env=self.environment, capture_output=True, timeout=30, check=False).returncode == 0

    def stop(self) -> int:
        """Stop it as its platform does: SIGTERM, and then no longer than its grace."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(self.container.grace)
        finally:
            self._output.close()

    def kill(self) -> None:
        """Kill all of its processes that still run."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._output.close()


class Host:
    """Runs containers. Names of services become addresses of the loopback interface, and volumes become folders."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {name: free_port() for name in ("redis", "metrics", "prometheus")}
        self.running: list[Running] = []
        self._volumes = {
            "/var/lib/shop": str(folder / "journal"),
            "/prometheus": str(folder / "tsdb"),
            "/data": str(folder / "redis"),
        }

    def start(self, name: str, container: Container, *arguments: str) -> Running:
        """Start a container, with more arguments for what containers have of their own: an address and a folder."""
        folder = self.folder / f"{name}-{len(self.running)}"
        port = self.ports.get(name) or free_port()
        (self.folder / "redis").mkdir(exist_ok=True)
        places = {
            "redis:6379": f"127.0.0.1:{self.ports['redis']}",
            "0.0.0.0:8000": f"127.0.0.1:{port}",
            "--host=0.0.0.0": "--host=127.0.0.1",
            "--port=9100": f"--port={port}",
            "127.0.0.1:9100": f"127.0.0.1:{port}",
            "/etc/prometheus/prometheus.yml": str(folder / "prometheus.yml"),
            "/tmp": str(folder / "tmp"),
            **self._volumes,
        }
        self.running.append(Running(container, folder, port, places, arguments))
        return self.running[-1]

    def start_redis(self, container: Container) -> Running:
        """Start Redis."""
        port = self.ports["redis"]
        started = self.start(
            "redis", container, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(self.folder / "redis")
        )
        wait_until(lambda: "Ready to accept connections" in started.log.read_text())
        return started

    def start_prometheus(self, container: Container, config: str, targets: Collection[int]) -> Prometheus:
        """Start Prometheus with a configuration whose one target becomes these ports."""
        folder = self.folder / f"prometheus-{len(self.running)}"
        folder.mkdir()
        addresses = ", ".join(f'"127.0.0.1:{port}"' for port in targets)
        mapped, found = re.subn(r'targets: \["metrics[\w.]*:9100"\]', f"targets: [{addresses}]", config)
        assert found == 1
        (folder / "prometheus.yml").write_text(mapped.replace("scrape_interval: 5s", "scrape_interval: 1s"))
        started = self.start(
            "prometheus", container, f"--web.listen-address=127.0.0.1:{self.ports['prometheus']}", "--log.level=error"
        )
        return Prometheus(started)

    def stop(self) -> None:
        """Kill all that still runs."""
        for each in self.running:
            each.kill()


class Prometheus:
    """A Prometheus that runs."""

    def __init__(self, running: Running) -> None:
        self.running = running

    def query(self, expression: str) -> float | None:
        """The one value of an expression; None without one, as while Prometheus starts."""
        try:
            answer = requests.get(
                f"http://127.0.0.1:{self.running.port}/api/v1/query", {"query": expression}, timeout=10
            ).json()
        except (requests.ConnectionError, requests.JSONDecodeError):
            return None
        assert answer["status"] == "success", answer
        values = [float(sample["value"][1]) for sample in answer["data"]["result"]]
        assert len(values) <= 1, answer
        return values[0] if values else None

    def wait_for(self, expression: str, expected: float) -> None:
        """Wait until the expression has this value."""
        with suppress(AssertionError):
            wait_until(lambda: self.query(expression) == expected, 30)
        found = self.query(expression)
        assert found == expected, (expression, found, self.running.log.read_text())


@contextmanager
def host(folder: Path) -> Iterator[Host]:
    """A host whose containers end with the context."""
    opened = Host(folder)
    try:
        yield opened
    finally:
        opened.stop()

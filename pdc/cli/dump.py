"""``pdc dump``: all metrics as text, OpenMetrics, protobuf or JSON."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from ..exposition import AnyEncoder, Encoder, ProtobufEncoder, Renderer
from ..family import families
from ..storage import Snapshot
from .places import Place, with_place
from .terminal import busy, examples
from .words import as_json

ENCODERS: dict[str, AnyEncoder] = {"text": Encoder(), "openmetrics": Encoder(openmetrics=True), "protobuf": ProtobufEncoder()}
FORMATS = (*ENCODERS, "json")


@click.command(
    epilog=examples(
        "pdc dump | promtool check metrics",
        "pdc dump -o /var/lib/node_exporter/pdc.prom",
        "pdc dump --format json | jq '.[].name'",
    )
)
@with_place
@click.option("--format", "kind", type=click.Choice(FORMATS), default="text", show_default=True, help="The format.")
@click.option("--output", "-o", type=click.Path(dir_okay=False), metavar="FILE", help="A file, which is replaced at once.")
def dump(place: Place, kind: str, output: str | None) -> None:
    """Write all metrics as text, protobuf or JSON.

    They go to the standard output, or to a file that other programs never see half written.
    """
    storage = place.open()
    with busy("Reading"):
        snapshot = storage.read()
        content = _rendered(snapshot, kind)
    if output is None:
        sys.stdout.buffer.write(content)
    else:
        try:
            _replace(Path(output), content)
        except OSError as error:
            raise click.ClickException(f"cannot write {output}: {error.strerror}") from error


def _rendered(snapshot: Snapshot, kind: str) -> bytes:
    if kind == "json":
        metrics = families(snapshot.metrics, snapshot.now)
        return json.dumps([*map(_family, metrics)], indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    return Renderer().render(snapshot, ENCODERS[kind])


def _family(metric: Metric) -> dict[str, Any]:
    samples = [*map(_sample, metric.samples)]
    return {"name": metric.name, "type": metric.type, "help": metric.documentation, "unit": metric.unit, "samples": samples}


def _sample(sample: Sample) -> dict[str, Any]:
    found: dict[str, Any] = {"name": sample.name, "labels": dict(sample.labels), "value": as_json(sample.value)}
    if sample.exemplar is not None:
        labels, value, time = sample.exemplar
        found["exemplar"] = {"labels": labels, "value": as_json(value), "timestamp": time}
    return found


def _replace(path: Path, content: bytes) -> None:
    """Replace the file at once, with the rights that a new file has; write to a pipe, or a device such as /dev/null."""
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    path = path.resolve()
    umask = os.umask(0o077)
    os.umask(umask)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~umask)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink()
            raise

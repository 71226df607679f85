"""The format, the escaping and the compression that the headers of a scrape ask for."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import exposition as text
from prometheus_client.openmetrics import exposition as openmetrics

from ..process.interruption import let_through
from .messages import ProtobufEncoder
from .rendering import AnyEncoder, Encoder

Format = tuple[AnyEncoder, str]
"""An encoder and its content type."""

TEXT_0_0_4 = text.CONTENT_TYPE_PLAIN_0_0_4
TEXT_1_0_0 = text.CONTENT_TYPE_PLAIN_1_0_0
PROTOBUF = "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
OPENMETRICS_1_0_0 = openmetrics.CONTENT_TYPE_LATEST
ESCAPINGS = (openmetrics.ALLOWUTF8, openmetrics.UNDERSCORES, openmetrics.DOTS, openmetrics.VALUES)
MOST_HEADER = 8_192
"""Characters of a header like Accept that are parsed."""


def negotiate(accept: str) -> Format:
    """Return the encoder and the content type that an Accept header prefers: text 0.0.4 where it names no known one."""
    chosen: Format = (Encoder(), TEXT_0_0_4)
    best = 0.0
    for media_type, parameters in _clauses(accept):
        quality = _quality(parameters)
        if quality > best and (found := _format(media_type, parameters)):
            chosen, best = found, quality
    return chosen


def accepts_gzip(accept_encoding: str) -> bool:
    """Return True if an Accept-Encoding header allows gzip, by name or by ``*``."""
    qualities = {name: _quality(parameters) for name, parameters in _clauses(accept_encoding)}
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0


def _clauses(header: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the values of a header like Accept in lower case, each with its parameters."""
    for clause in header[:MOST_HEADER].split(","):
        value, *parameters = (part.strip() for part in clause.split(";"))
        pairs = (parameter.partition("=") for parameter in parameters)
        yield value.lower(), {name.strip().lower(): content.strip().strip('"') for name, _, content in pairs}


def _quality(parameters: dict[str, str]) -> float:
    try:
        quality = float(parameters.get("q", "1"))
    except ValueError as error:
        let_through(error)
        return 0.0
    return quality if 0.0 <= quality <= 1.0 else 0.0


def _format(media_type: str, parameters: dict[str, str]) -> Format | None:
    version, wanted = parameters.get("version", ""), parameters.get("escaping", "")
    escaping = wanted if wanted in ESCAPINGS else openmetrics.UNDERSCORES
    message, encoding = parameters.get("proto", ""), parameters.get("encoding", "")
    if (media_type, message, encoding) == ("application/vnd.google.protobuf", "io.prometheus.client.MetricFamily", "delimited"):
        return ProtobufEncoder(escaping), f"{PROTOBUF}; escaping={escaping}"
    if media_type == "application/openmetrics-text" and version in ("", "1.0.0"):
        return Encoder(openmetrics=True, escaping=escaping), f"{OPENMETRICS_1_0_0}; escaping={escaping}"
    if media_type == "text/plain" and version == "1.0.0":
        return Encoder(escaping=escaping), f"{TEXT_1_0_0}; escaping={escaping}"
    if media_type in ("text/plain", "text/*", "*/*") and version in ("", "0.0.4"):
        return Encoder(), TEXT_0_0_4
    return None

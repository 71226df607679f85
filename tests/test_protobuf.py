"""The protobuf format: it says the same as the text, as a decoder that is not ours reads it."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import METRIC_TYPES, PROTOBUF, Row, decoded, rows
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import ALLOWUTF8, escape_label_name, escape_metric_name
from prometheus_client.samples import Exemplar, Timestamp
from test_rendering import ESCAPINGS, NOW, Metrics, numbers, rendered, stored_metrics

import pdc
from pdc.exemplars import EXEMPLAR, exemplar_text
from pdc.exposition import ProtobufEncoder, Scrape
from pdc.exposition.rendering import Encoder, Renderer
from pdc.exposition.series import CHUNK
from pdc.family import Family, Page, families
from pdc.storage import META

PROMETHEUS_2 = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited,"
    "application/openmetrics-text;version=1.0.0;q=0.8,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
PROMETHEUS_3 = (
    "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
)
SUFFIXES = {
    "counter": ("_total", "_created"),
    "summary": ("_count", "_sum", "_created"),
    "histogram": ("_bucket", "_count", "_sum", "_created"),
}
"""The suffixes of samples of the types that have several."""


def spelled(name: str, escape: Callable[[str, str], str], escaping: str) -> str:
    """The name without the quotes that it has in text."""
    return name if escaping == ALLOWUTF8 else escape(name, escaping)


def expected(metrics: Iterable[Metric], escaping: str) -> Iterator[Row]:
    """Yield the rows of families of a storage, whose samples the text shows. A histogram without a sum has the sum NaN."""
    for metric in metrics:
        known_series = [(sample.name, sample.labels) for sample in metric.samples]
        for name, labels, value, _, exemplar, *_ in metric.samples:
            suffix = next(each for each in SUFFIXES.get(metric.type, ("",)) if name.endswith(each))
            base = name.removesuffix(suffix)
            plain = spelled(base + ("_total" if metric.type == "counter" else ""), escape_metric_name, escaping)
            own = {"le": labels["le"]} if suffix == "_bucket" else {}
            known = sorted(labels.items() - own.items())
            shown = (*((spelled(each, escape_label_name, escaping), text) for each, text in known), *own.items())
            row = f"{plain}{suffix}" if metric.type in ("summary", "histogram") else plain, shown
            if suffix == "_created":
                yield plain, shown, "created", created(value)
                continue
            yield *row, "value", repr(whole(value) if suffix == "_count" and metric.type == "summary" else float(value))
            if exemplar is not None:
                yield *row, "exemplar", ([*exemplar.labels.items()], repr(exemplar.value), exemplar.timestamp)
            if suffix == "_count" and (f"{base}_sum", labels) not in known_series:
                yield f"{plain}_sum", shown, "value", "nan"


def created(value: float) -> float:
    """The time as a Timestamp of this century has it."""
    return round(value, 6) if 0 <= value < 2.0**35 else 0.0


def whole(value: float) -> float:
    """The count as the unsigned integer of a summary."""
    return 0.0 if math.isnan(value) else float(round(min(max(value, 0.0), 2.0**53)))


def said(body: bytes) -> list[Row]:
    """The rows of the page in any order."""
    return sorted(rows(body), key=repr)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(stored_metrics(), st.sampled_from(ESCAPINGS), st.lists(numbers, min_size=5, max_size=5))
def test_protobuf_says_the_same_as_text(metrics: Metrics, escaping: str, others: list[Any]) -> None:
    """Any families have the samples of the text, at first, again, and with other numbers, and the bytes of collected ones."""
    renderer, encoder = Renderer(), ProtobufEncoder(escaping)
    turns = cycle(others)
    changed = {
        name: {field: value if field.startswith("#") else next(turns) for field, value in fields.items()}
        for name, fields in metrics.items()
    }
    for each in (metrics, metrics, changed):
        collected = families(each, NOW, Page(escaping))
        body = rendered(renderer, each, encoder)
        assert said(body) == sorted(expected(collected, escaping), key=repr)
        if all(Family.from_meta(fields[META]).empty().name == name for name, fields in each.items()):  # as pdc writes them
            assert body == encoder.encode(collected)


@pytest.mark.parametrize(
    ("count", "exemplar"),
    [(CHUNK - 1, ""), (CHUNK, "1"), (2 * CHUNK + 1, ""), (2 * CHUNK + 1, "é" * 100)],
    ids=["almost one piece", "one piece", "three pieces", "a long exemplar"],
)
def test_large_families_are_whole(count: int, exemplar: str) -> None:
    """Families that are rendered in several pieces have all their series, with exemplars of any length."""
    fields: dict[str, Any] = {f'_total:{{"a":"{number}"}}': float(number) for number in range(count)}
    if exemplar:
        last = f'_total:{{"a":"{count - 1}"}}'
        fields[EXEMPLAR + last] = exemplar_text({"trace": exemplar}, 1.5, NOW)
    metrics: Metrics = {"m": {META: Family("m", "counter", "").meta, **fields}}
    body = rendered(Renderer(), metrics, ProtobufEncoder())
    assert said(body) == sorted(expected(families(metrics, NOW), ALLOWUTF8), key=repr)


@pytest.mark.parametrize(
    "value", [0.0, 1.0, 127.0, 128.0, 16383.0, 16384.0, 2.0**31, 2.0**49 + 1, 2.0**53, 2.5, -1.0, math.inf]
)
def test_counts_of_buckets_are_exact(value: float) -> None:
    """A count is an integer where it is one below 2**53, and a float elsewhere: 0.5 of an observation, for example."""
    metrics: Metrics = {"m": {META: Family("m", "histogram", "", bounds=("+Inf",)).meta, '_bucket:{"le":"+Inf"}': value}}
    (family,) = decoded(rendered(Renderer(), metrics, ProtobufEncoder()))
    (bucket,) = family.metric[0].histogram.bucket
    is_integer = value.is_integer() and 0 <= value < 2.0**53
    assert bucket.HasField("cumulative_count") is is_integer
    assert (bucket.cumulative_count if is_integer else bucket.cumulative_count_float) == value


@pytest.mark.parametrize(
    ("accept", "escaping"),
    [
        (PROMETHEUS_2, "underscores"),
        (PROMETHEUS_3, "allow-utf-8"),
        (f"{PROTOBUF}; escaping=dots", "dots"),
        (f"text/plain;q=0.5, {PROTOBUF.replace('application', 'Application').replace('proto=', 'Proto=')}", "underscores"),
        (f"{PROTOBUF};q=0.4, text/plain;q=0.5", ""),
        (PROTOBUF.replace("delimited", "text"), ""),
        (PROTOBUF.replace("MetricFamily", "Metric"), ""),
        ("application/vnd.google.protobuf", ""),
    ],
)
def test_accept_chooses_protobuf(tmp_path: Path, registry: CollectorRegistry, accept: str, escaping: str) -> None:
    """Clients that prefer delimited messages of families get them, with names in their escaping; others get text."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    gauge = pdc.Gauge("dotted.name", "Help", ["é"], registry=registry)
    gauge.labels("\n").set(1)
    answer = Scrape(accept=accept).answer()
    if not escaping:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return
    assert answer.headers["Content-Type"] == f"{PROTOBUF}; escaping={escaping}"
    name, label = spelled("dotted.name", escape_metric_name, escaping), spelled("é", escape_label_name, escaping)
    assert (name, ((label, "\n"),), "value", "1.0") in rows(answer.body)


class Fixed:
    """A collector of these families."""

    def __init__(self, *metrics: Metric) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        """The families."""
        return self._metrics


def family(name: str, kind: str, *samples: tuple[Any, ...], unit: str = "") -> Metric:
    """A family with samples of suffix, labels, value, and perhaps time and exemplar."""
    metric = Metric(name, "Help", kind, unit)
    for suffix, *rest in samples:
        metric.add_sample(metric.name + suffix, *rest)
    return metric


def test_every_type_of_collectors_is_shown() -> None:
    """Families have the type and the name that text has, with units and times; samples unlike them have families of no type."""
    le, half = {"le": "+Inf"}, {"quantile": "0.5"}
    exemplar = Exemplar({"trace": "1"}, 0.5, Timestamp(12, 5_000_000))
    shown = [
        family("hits", "counter", ("_total", {"a": "1"}, 2, 1.5), ("_created", {"a": "1"}, 7.25, Timestamp(1, 500_000_000))),
        family("level", "gauge", ("", {}, 3), unit="meters"),
        family("any", "unknown", ("", {}, 4)),
        family("build", "info", ("_info", {"v": "1"}, 1)),
        family("light", "stateset", ("", {"light": "on"}, 1)),
        family("took", "summary", ("", half, 0.25), ("_count", {}, 2), ("_sum", {}, 0.5)),
        family("wait", "histogram", ("_bucket", le, 2, None, exemplar), ("_sum", {}, 8)),
        family("depth", "gaugehistogram", ("_bucket", le, 2.5), ("_gcount", {}, 2.5), ("_gsum", {}, -8)),
        family("odd", "gauge", ("_other", {"a": "1"}, 5)),
        family("sizes", "summary", ("", {}, 6)),
        family("ages", "histogram", ("_bucket", {"le": "old"}, 7)),
        family("nothing", "gauge"),
    ]
    body = Scrape(accept=PROTOBUF).answer(Fixed(*shown)).body
    about = [(found.name, METRIC_TYPES[found.type], found.unit) for found in decoded(body)]
    assert about == [
        ("hits_total", "COUNTER", ""),
        ("level_meters", "GAUGE", "meters"),
        ("any", "UNTYPED", ""),
        ("build_info", "GAUGE", ""),
        ("light", "GAUGE", ""),
        ("took", "SUMMARY", ""),
        ("wait", "HISTOGRAM", ""),
        ("depth_bucket", "UNTYPED", ""),
        ("depth_gcount", "UNTYPED", ""),
        ("depth_gsum", "UNTYPED", ""),
        ("odd_other", "UNTYPED", ""),
        ("sizes", "UNTYPED", ""),
        ("ages_bucket", "UNTYPED", ""),
    ]
    assert [found.help for found in decoded(body)] == ["Help"] * 7 + [""] * 6
    assert decoded(body)[0].metric[0].timestamp_ms == 1500
    assert [*rows(body)] == [
        ("hits_total", (("a", "1"),), "value", "2.0"),
        ("hits_total", (("a", "1"),), "created", 7.25),
        ("level_meters", (), "value", "3.0"),
        ("any", (), "value", "4.0"),
        ("build_info", (("v", "1"),), "value", "1.0"),
        ("light", (("light", "on"),), "value", "1.0"),
        ("took", (("quantile", "0.5"),), "value", "0.25"),
        ("took_count", (), "value", "2.0"),
        ("took_sum", (), "value", "0.5"),
        ("wait_bucket", (("le", "+Inf"),), "value", "2.0"),
        ("wait_bucket", (("le", "+Inf"),), "exemplar", ([("trace", "1")], "0.5", 12.005)),
        ("wait_count", (), "value", "2.0"),
        ("wait_sum", (), "value", "8.0"),
        ("depth_bucket", (("le", "+Inf"),), "value", "2.5"),
        ("depth_gcount", (), "value", "2.5"),
        ("depth_gsum", (), "value", "-8.0"),
        ("odd_other", (("a", "1"),), "value", "5.0"),
        ("sizes", (), "value", "6.0"),
        ("ages_bucket", (("le", "old"),), "value", "7.0"),
    ]


def test_names_choose_whole_families(tmp_path: Path, registry: CollectorRegistry) -> None:
    """Names choose families by their names or those of samples: without its count a summary would have none.

    They are those of a query `name[]` or of a restricted registry.
    """
    pdc.setup(sqlite=tmp_path / "metrics.db")
    for name in ("a", "b", "c"):
        pdc.Summary(name, "Help", registry=registry).observe(2)
    other = CollectorRegistry()
    prometheus_client.Summary("d", "Help", registry=other).observe(3)
    prometheus_client.Gauge("e", "Help", registry=other)
    names = ("a_sum", "c", "d_count")
    chosen = Scrape(accept=PROTOBUF, query="&".join(f"name[]={name}" for name in names))
    answers = [chosen.answer(other), Scrape(accept=PROTOBUF).answer(other.restricted_registry(names))]
    answers += [chosen.answer(other.restricted_registry((*names, "b"))), chosen.answer(Fixed(*other.collect()))]
    for answer, shown in zip(answers, ("acd", "acd", "acd", "d"), strict=True):
        found = [row for row in rows(answer.body) if row[2] == "value"]
        assert found == [
            (f"{name}_{of}", (), "value", value)
            for name in shown
            for of, value in (("count", "1.0"), ("sum", "3.0" if name == "d" else "2.0"))
        ]


def test_times_of_creation_follow_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times of creation are shown as they are now, and only while creation times are enabled."""
    renderer = Renderer()
    fields: dict[str, Any] = {META: Family("m", "counter", "").meta, "_total:{}": 1.0, "_created:{}": "5.5"}
    for moment in ("5.5", "6.5", 7.25):
        body = rendered(renderer, {"m": {**fields, "_created:{}": moment}}, ProtobufEncoder())
        assert ("m_total", (), "created", float(moment)) in rows(body)
    monkeypatch.setattr(prometheus_client.metrics, "_use_created", False)
    assert [*rows(rendered(renderer, {"m": fields}, ProtobufEncoder()))] == [("m_total", (), "value", "1.0")]


@pytest.mark.parametrize(("created", "most"), [(0, 6), (2, 26)], ids=["alike", "in turns"])
def test_a_first_scrape_makes_few_calls_for_a_series(created: int, most: int) -> None:
    """The messages of series that are alike are made together, and the labels of all: few functions of Python are called."""
    made: list[int] = []

    def note(_: object, event: str, __: object) -> None:
        made[-1] += event == "call"

    for count in (CHUNK, 2 * CHUNK):
        family = Family("hits", "counter", "Hits.", "", ("path", "status"))
        fields = {f'_total:{{"path":"/{number}","status":"{number}"}}': "1" for number in range(count)}
        for field in [*fields][::created] if created else ():
            fields[field.replace("_total", "_created")] = "1"
        made.append(0)
        sys.setprofile(note)
        ProtobufEncoder().layout((), family, fields)
        sys.setprofile(None)
    assert made[1] - made[0] < most * CHUNK


def test_messages_are_shorter_than_text() -> None:
    """The page of a counter and a histogram takes less room than in text."""
    fields: dict[str, Any] = {
        f'_bucket:{{"le":"{le}","path":"/{page}"}}': 5 for page in range(9) for le in ("0.1", "1.0", "+Inf")
    }
    metrics: Metrics = {
        "hits": {META: Family("hits", "counter", "").meta, **{f'_total:{{"path":"/{page}"}}': 5 for page in range(9)}},
        "wait_seconds": {META: Family("wait_seconds", "histogram", "").meta, **fields},
    }
    assert len(rendered(Renderer(), metrics, ProtobufEncoder())) < 0.6 * len(rendered(Renderer(), metrics, Encoder()))

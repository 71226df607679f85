"""Native histograms in the protobuf format: spans, deltas and counts, as a decoder that is not ours reads them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from messages import PROTOBUF, decoded, native, rows
from natives import Folded
from prometheus_client import CollectorRegistry
from test_rendering import NOW, Metrics, rendered

import pdc
from pdc import Native
from pdc.exemplars import EXEMPLAR, exemplar_text
from pdc.exposition import ProtobufEncoder, Scrape
from pdc.exposition.rendering import Renderer
from pdc.family import Family, dump
from pdc.native import NAN, Bucket
from pdc.storage import META

resolutions = st.builds(Native, st.sampled_from([1.002, 1.1, 1.5, 10.0]), st.just(160), st.sampled_from([0.0, 2.0**-128, 0.01]))
buckets = st.builds(Bucket, st.integers(-4, 8), st.sampled_from("pn"), st.integers(-40, 40))
zeros = st.builds(Bucket, st.integers(-4, 8), st.just("z"), st.none() | st.integers(-60, 2))
counts = st.integers(1, 300).map(float) | st.sampled_from([2.0**40, 0.5])


def stored(resolution: Native, found: dict[str, Any], total: float = 1.5, bounds: tuple[str, ...] = ("+Inf",)) -> Metrics:
    """The fields of a histogram with these native buckets in its only series."""
    family = Family("m", "histogram", "", bounds=bounds, native=tuple(resolution))
    fields = {"_native:" + dump({"le": bucket}): count for bucket, count in found.items()}
    return {"m": {META: family.meta, "_sum:{}": total, **fields}}


def shown(metrics: Metrics) -> Any:
    """The message of the only series."""
    (family,) = decoded(rendered(Renderer(), metrics, ProtobufEncoder()))
    (metric,) = family.metric
    return metric.histogram


@settings(derandomize=True, deadline=None, max_examples=60)
@given(resolutions, st.dictionaries((buckets | zeros).map(Bucket.dumps) | st.just(NAN), counts, max_size=12))
def test_buckets_are_those_of_the_storage(resolution: Native, found: dict[str, float]) -> None:
    """Buckets of any schemas are shown as those of the coarsest one, and their counts are exact."""
    expected = Folded.of(found, resolution)
    *about, count, total = native(shown(stored(resolution, found)))
    assert about == [expected.schema, expected.zero_threshold, expected.zero_count, expected.positive, expected.negative]
    assert count == expected.count
    assert total == 1.5 or (NAN in found and math.isnan(total))


@pytest.mark.parametrize(
    ("indices", "spans", "deltas"),
    [
        ([], [], []),
        ([0], [(0, 1)], [1]),
        ([-3], [(-3, 1)], [1]),
        ([1, 2, 3], [(1, 3)], [1, 1, 1]),
        ([1, 3], [(1, 3)], [1, -1, 2]),
        ([1, 4], [(1, 4)], [1, -1, 0, 2]),
        ([1, 5], [(1, 1), (3, 1)], [1, 1]),
        ([-10, -9, -6, 0, 7], [(-10, 5), (5, 1), (6, 1)], [1, 1, -2, 0, 3, 1, 1]),
    ],
)
def test_spans_fill_gaps_of_two_buckets(indices: list[int], spans: list[tuple[int, int]], deltas: list[int]) -> None:
    """Up to two empty buckets between two others are sent as such; more of them begin another span."""
    for kind in "pn":
        found = {f"3{kind}{index}": place + 1.0 for place, index in enumerate(indices)}
        message = shown(stored(Native(), found))
        side = {"p": "positive", "n": "negative"}[kind]
        assert [(span.offset, span.length) for span in getattr(message, f"{side}_span")] == spans
        assert [*getattr(message, f"{side}_delta")] == deltas


@pytest.mark.parametrize(("threshold", "spans"), [(0.0, [(0, 0)]), (2.0**-128, [])])
def test_a_histogram_without_observations_is_native(threshold: float, spans: list[tuple[int, int]]) -> None:
    """A histogram without observations is native, also with classic buckets: so Prometheus sees it begin at 0.

    It has an empty span where nothing else shows that.
    """
    message = shown(stored(Native(zero_threshold=threshold), {}, 0.0))
    assert [(span.offset, span.length) for span in message.positive_span] == spans
    assert (message.schema, message.zero_threshold, message.sample_count) == (3, threshold, 0)
    both = shown(stored(Native(zero_threshold=threshold), {}, 0.0, ("1.0", "+Inf")))
    assert both.positive_span == message.positive_span
    assert ([bucket.upper_bound for bucket in both.bucket], both.HasField("schema")) == ([1.0, math.inf], True)


def test_counts_that_are_no_whole_numbers_are_floats() -> None:
    """One such count makes all of the series floats, as Prometheus reads them."""
    message = shown(stored(Native(), {"3p1": 0.5, "3p2": 2.0, "3n1": 4.0, "3z": 3.0}))
    assert (message.sample_count_float, message.zero_count_float) == (9.5, 3.0)
    assert [*message.positive_count, *message.negative_count] == [0.5, 2.0, 4.0]
    assert not [
        field for field, _ in message.ListFields() if field.name in ("positive_delta", "negative_delta", "sample_count")
    ]


def test_the_newest_exemplars_of_native_buckets() -> None:
    """A series without classic buckets has its ten newest exemplars, the oldest first."""
    metrics = stored(Native(), {f"3p{index}": 1.0 for index in range(12)})
    for index in range(12):
        field = EXEMPLAR + "_native:" + dump({"le": f"3p{index}"})
        metrics["m"][field] = exemplar_text({"trace": str(index)}, 1.0, NOW - index)
    found = [[label.value for label in exemplar.label] for exemplar in shown(metrics).exemplars]
    assert found == [[str(index)] for index in reversed(range(10))]


def test_a_later_scrape_has_the_numbers_of_its_time() -> None:
    """A count, a sum or an exemplar that changed since the last scrape is shown; so is what did not change."""
    renderer, metrics = Renderer(), stored(Native(), {"3p1": 1.0, "3p2": 2.0})
    exemplar = EXEMPLAR + "_native:" + dump({"le": "3p1"})
    changes = {"_native:" + dump({"le": "3p2"}): 5.0, "_sum:{}": math.nan, exemplar: exemplar_text({"trace": "2"}, 1.0, NOW)}
    metrics["m"][exemplar] = exemplar_text({"trace": "1"}, 1.0, NOW)
    pages = [rendered(renderer, metrics, ProtobufEncoder())]
    for field, value in changes.items():
        metrics["m"][field] = value
        fresh = rendered(Renderer(), metrics, ProtobufEncoder())
        assert rendered(renderer, metrics, ProtobufEncoder()) == rendered(renderer, metrics, ProtobufEncoder()) == fresh
        pages.append(fresh)
    assert len({*pages}) == 4


def test_classic_and_native_buckets_share_a_message(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """A histogram with both has both, with one count and one sum; series from before only have classic buckets."""
    pdc.setup(**storage)
    both = pdc.Histogram("m", "Help", ["a"], buckets=(1, 2), native=True, registry=registry)
    for number in (-0.5, 0.0, 1.5, 1.5, 100.0):
        both.labels("1").observe(number, {"trace": "1"})
    pdc.Histogram("only", "Help", buckets=(), native=Native(factor=4), registry=registry).observe(3.0)
    body = Scrape(accept=PROTOBUF).answer().body
    families = {family.name: family.metric[0].histogram for family in decoded(body)}
    assert native(families["m"]) == (3, 2.0**-128, 1.0, {5: 2.0, 54: 1.0}, {-8: 1.0}, 5.0, 102.5)
    found = {row[1][-1]: row[3] for row in rows(body) if row[0] == "m_bucket" and row[2] == "value"}
    assert found == {("le", "1.0"): "2.0", ("le", "2.0"): "4.0", ("le", "+Inf"): "5.0"}
    assert native(families["only"]) == (-1, 2.0**-128, 0.0, {1: 1.0}, {}, 1.0, 3.0)
    assert not families["only"].bucket
    old = stored(Native(), {}, bounds=("1.0", "+Inf"))
    old["m"]["_bucket:" + dump({"le": "1.0"})] = 7.0
    assert shown(old).sample_count == 7
    assert not shown(old).HasField("schema")


@pytest.mark.parametrize("name", ["m", "m_count", "m_bucket"])
def test_names_choose_native_histograms(tmp_path: Path, registry: CollectorRegistry, name: str) -> None:
    """`name[]` and restricted registries find a native histogram also by its own name, that of its series in Prometheus."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    pdc.Histogram("m", "Help", buckets=(), native=True, registry=registry).observe(3.0)
    pdc.Gauge("other", "Help", registry=registry).set(1)
    restricted = Scrape(accept=PROTOBUF).answer(registry.restricted_registry([name]))
    for answer in (Scrape(accept=PROTOBUF, query=f"name[]={name}").answer(), restricted):
        (family,) = decoded(answer.body)
        assert (family.name, family.metric[0].histogram.schema, family.metric[0].histogram.sample_count) == ("m", 3, 1)

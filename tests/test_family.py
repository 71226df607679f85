"""Families: the description of a metric in a storage, and the samples that its fields become."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import reduce
from itertools import count
from operator import add, itemgetter
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Exemplar

from pdc.exemplars import exemplar_text
from pdc.family import LEASE_SECONDS, Family, clean, dump, families
from pdc.native import Native
from pdc.storage import META, StorageError
from pdc.storage.labels import around_bound, parsed
from pdc.storage.ordered import Picked

NOW = 1000.0
any_text = st.text(st.characters(), max_size=20) | st.sampled_from(
    ['"}', "\\", "\n\r\0", "\ud800", '{"le":"1.0"}', "a" * 1_000_000]
)
any_labels = st.dictionaries(st.sampled_from(["a", "b", "pid", "é", "quantile", '"', ":"]), any_text.map(clean))


def values(family: Family, fields: Mapping[str, object], now: float = NOW) -> dict[tuple[str, ...], float]:
    """The samples of the family, by name and label values."""
    return {(sample.name, *sample.labels.values()): sample.value for sample in family.metric(fields, now).samples}


@pytest.mark.parametrize(
    "family",
    [
        Family("sales_bytes", "counter", "Help", "bytes", ("path", "é")),
        Family("stock", "gauge", 'A "help"\n', mode="livesum"),
        Family("wait", "histogram", "", bounds=("-1.0", "0.5", "+Inf")),
        Family("state", "stateset", "", states=("on", "off")),
    ],
)
def test_a_family_comes_back_from_its_meta(family: Family) -> None:
    """`#meta` keeps the whole family, and additions of later versions are ignored."""
    assert Family.from_meta(family.meta) == family
    later = json.dumps({**json.loads(family.meta), "added": [1]})
    assert Family.from_meta(later) == family
    assert families({family.name: {META: later}}, NOW)[0].name == family.name


def test_families_are_sorted_and_known() -> None:
    """Families come sorted by name; fields without a description are omitted."""
    metrics = {name: {META: Family(name, "counter", "").meta} for name in ("b", "a")}
    assert [metric.name for metric in families({**metrics, "unknown": {"_total:{}": 1.0}}, NOW)] == ["a", "b"]


def test_types_of_later_versions_are_left_out() -> None:
    """A metric of a type that this version does not know leaves the others unchanged."""
    later = json.dumps({**json.loads(Family("later", "gauge", "").meta), "type": "nativehistogram"})
    shown = families({"later": {META: later}, "now": {META: Family("now", "gauge", "").meta}}, NOW)
    assert [metric.name for metric in shown] == ["now"]


def test_series_are_sorted_by_the_values_of_their_labels() -> None:
    """Series come in the order of their label values, and bookkeeping is no series."""
    fields = {f'_total:{{"a":"{value}"}}': 1.0 for value in ("b", "a", "c")}
    others = {"#mark:1-a": "1 900.0", "other:{}": "x"}
    samples = Family("m", "counter", "", labelnames=("a",)).metric({**fields, **others}, NOW).samples
    assert [sample.labels["a"] for sample in samples] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("", ""), ("é☃😀\0", "é☃😀\0"), ("a\ud800b", "a\ufffdb"), ("\udc00\ud800", "\ufffd\ufffd"), ("\ud83d\ude00", "😀")],
)
def test_lone_surrogates_are_replaced(text: str, shown: str) -> None:
    """Text that no format can carry is replaced, and other text is not."""
    assert clean(text) == shown


def test_labels_are_spelt_in_one_way() -> None:
    """Labels are JSON in ASCII, sorted by name, without spaces, so that every process finds the same field."""
    assert dump({"b": "é", "a": '"'}) == dump({"a": '"', "b": "é"}) == '{"a":"\\"","b":"\\u00e9"}'
    assert "+Inf".join(around_bound('{"z":"1"}')) == '{"le":"+Inf","z":"1"}'


@settings(derandomize=True, deadline=None)
@given(any_labels, any_labels)
def test_labels_come_back_from_every_kind_of_field(labels: dict[str, str], others: dict[str, str]) -> None:
    """A field of any type gives its labels back, with any text, and other labels are another field."""
    assert (dump(labels) == dump(others)) is (labels == others)
    summed = Family("m", "gauge", "", mode="sum")
    fields: dict[str, dict[str, object]] = {
        Family("m", "counter", "").meta: {"_total:" + dump(labels): 1.0},
        Family("m", "histogram", "", bounds=("+Inf",)).meta: {"_bucket:" + "+Inf".join(around_bound(dump(labels))): 1.0},
        Family("m", "gauge", "").meta: {":" + dump(labels): 1.0},
        summed.meta: {summed.process_prefix("1-a") + dump(labels): "1.0 2.0"},
    }
    for meta, stored in fields.items():
        sample = Family.from_meta(meta).metric(stored, NOW).samples[0]
        sample.labels.pop("le", None)
        assert (sample.labels, sample.value) == (labels, 1.0)


@pytest.mark.parametrize("field", ["_total:", "_total:{broken", "_total:[1]", "_total:{}"])
def test_foreign_fields_are_an_error(field: str) -> None:
    """A field that is no series, or a value that is no number, is an error that names the metric."""
    with pytest.raises(StorageError, match=r"metric 'm' holds something that pdc did not write: .* Delete the field"):
        families({"m": {META: Family("m", "counter", "").meta, field: None}}, NOW)
    with pytest.raises(StorageError, match="metric 'm' holds something"):
        families({"m": {META: field}}, NOW)


@pytest.mark.parametrize(
    "texts",
    [
        ['{"a":"1"', '"b":"2"}', "{},{}"],
        ['{"a":[{}', "{}]}", "{},{}"],
        ["{}", "{},{}"],
        ["{}", ""],
        ['{"a":1}'],
        ['{"\\ud800":"1"}'],
        ['{"a":"\\ud800"}'],
    ],
)
def test_texts_that_are_no_labels_are_an_error(texts: list[str]) -> None:
    """Labels that are parsed together are refused as each alone, also where the texts make sense together."""
    with pytest.raises((ValueError, TypeError, LookupError)):
        list(parsed(texts))


def test_labels_of_many_texts_are_sorted_by_name() -> None:
    """Any number of texts gives as many labels, sorted by name however the text has them."""
    found = list(parsed([f'{{"b":"{number}", "a":"1"}}' if number % 2 else f'{{"a":"{number}"}}' for number in range(2_500)]))
    assert [list(labels.items()) for labels in found] == [
        [("a", "1"), ("b", str(number))] if number % 2 else [("a", str(number))] for number in range(2_500)
    ]
    assert list(parsed([])) == []


def test_a_change_is_described_in_words() -> None:
    """Two declarations are compared part by part, and equal ones have no differences."""
    old, new = Family("m", "counter", "Help", labelnames=("a",)), Family("m", "summary", "Help", labelnames=("a", "b"))
    assert new.changed_since(old.meta) == "type 'counter' is now 'summary', labelnames ('a',) is now ('a', 'b')"
    assert new.changed_since(new.meta) == ""
    classic, native, fine = (Family("m", "histogram", "Help", native=native) for native in ((), Native(), Native(factor=1.02)))
    missing = "has none now: set PDC_NATIVE_HISTOGRAMS, or native=, in this process, too"
    assert classic.changed_since(native.meta) == f"had native buckets (factor 1.1), {missing}"
    assert native.changed_since(classic.meta) == "had no native buckets, has factor 1.1 now"
    assert fine.changed_since(native.meta) == "had native buckets (factor 1.1), has factor 1.02 now"


def test_histograms_with_other_bounds_add_up() -> None:
    """Buckets of every process are cumulated over the bounds of all; `_count` is their sum, so it cannot disagree."""
    family = Family("m", "histogram", "", bounds=("1.0", "2.0", "+Inf"))
    fields = {
        '_bucket:{"le":"1.0"}': 1.0,
        '_bucket:{"le":"1.5"}': 2.0,
        '_bucket:{"le":"10.0"}': 4.0,
        '_bucket:{"le":"+Inf"}': "8",
        "_sum:{}": 99.5,
    }
    assert values(family, fields) == {
        ("m_bucket", "1.0"): 1.0,
        ("m_bucket", "1.5"): 3.0,
        ("m_bucket", "2.0"): 3.0,
        ("m_bucket", "10.0"): 7.0,
        ("m_bucket", "+Inf"): 15.0,
        ("m_count",): 15.0,
        ("m_sum",): 99.5,
    }


def test_a_histogram_that_may_fall_has_no_sum() -> None:
    """A histogram with a negative bound shows no sum, as in prometheus_client: it would not be a counter."""
    assert values(Family("m", "histogram", "", bounds=("-1.0", "+Inf")), {"_sum:{}": 1.0}) == {
        ("m_bucket", "-1.0"): 0.0,
        ("m_bucket", "+Inf"): 0.0,
        ("m_count",): 0.0,
    }


PROCESSES = {"1-a": "3.0 900.0", "2-b": "1.0 950.0", "3-c": "2.0 940.0"}
SEEN = {"1-a": NOW - LEASE_SECONDS - 1, "2-b": NOW - LEASE_SECONDS, "3-c": NOW}


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("all", {("m", "1-a"): 3.0, ("m", "2-b"): 1.0, ("m", "3-c"): 2.0}),
        ("sum", {("m",): 6.0}),
        ("min", {("m",): 1.0}),
        ("max", {("m",): 3.0}),
        ("mostrecent", {("m",): 1.0}),
        ("liveall", {("m", "2-b"): 1.0, ("m", "3-c"): 2.0}),
        ("livesum", {("m",): 3.0}),
        ("livemin", {("m",): 1.0}),
        ("livemax", {("m",): 2.0}),
        ("livemostrecent", {("m",): 1.0}),
    ],
)
def test_values_of_processes_are_merged(mode: str, expected: dict[tuple[str, ...], float]) -> None:
    """Each mode merges the processes that count: all, or the ones with a valid lease."""
    family = Family("m", "gauge", "", mode=mode)
    fields: dict[str, object] = {family.process_prefix(writer) + "{}": value for writer, value in PROCESSES.items()}
    fields.update({f"#mark:{writer}": f"1 {seen}" for writer, seen in SEEN.items()})
    fields[":{}"] = 77.0  # of the time when it was shared
    assert values(family, fields) == expected


def merged(mode: str, own: dict[tuple[str, str], tuple[float, float]], seen: dict[str, float]) -> dict[tuple[str, ...], float]:
    """The values that a page shows: by process and label, these are the values and the times at which they were set."""
    found: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for (writer, label), value in own.items():
        if not mode.startswith("live") or abs(NOW - seen.get(writer, 0.0)) <= LEASE_SECONDS:
            found.setdefault((label, writer) if mode.endswith("all") else (label,), []).append(value)
    merges: dict[str, Any] = {
        "all": lambda values: values[0][0],
        "sum": lambda values: reduce(add, [number for number, _ in values]),
        "min": lambda values: min(number for number, _ in values),
        "max": lambda values: max(number for number, _ in values),
        "mostrecent": lambda values: max(values, key=itemgetter(1))[0],
    }
    return {("m", *key): merges[mode.removeprefix("live")](values) for key, values in found.items()}


processes = st.sampled_from(["", "1-a", "2-b", "3-c"])
ages = st.sampled_from([0.0, 14.0, 15.0, 16.0, -16.0, NOW])


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    st.sampled_from([f"{live}{mode}" for live in ("", "live") for mode in ("all", "sum", "min", "max", "mostrecent")]),
    st.dictionaries(st.tuples(processes, st.sampled_from("xyz")), st.tuples(st.floats(), ages)),
    st.dictionaries(processes, ages),
)
def test_processes_that_live_are_merged(mode: str, given_ages: Any, seen_ages: dict[str, float]) -> None:
    """Any values of any processes are merged by their mode; a process is seen when it sets a value, if not later."""
    family = Family("m", "gauge", "", labelnames=("a",), mode=mode)
    own = {key: (number, NOW - age) for key, (number, age) in given_ages.items()}
    seen = {writer: NOW - age for writer, age in seen_ages.items()}
    for (writer, _), (_, set_at) in own.items():
        is_later = abs(NOW - set_at) < abs(NOW - seen.get(writer, 0.0))
        seen[writer] = set_at if is_later else seen.get(writer, 0.0)
    values_of = {
        f"{family.process_prefix(writer)}{dump({'a': label})}": f"{number!r} {set_at!r}"
        for (writer, label), (number, set_at) in own.items()
    }
    marks = {f"#mark:{writer}": f"1 {at!r} live" for writer, at in seen.items()}
    unmarked = Picked(dict(zip(values_of, count(), strict=False)), [*values_of.values()], lambda _: marks)
    for fields in ({**values_of, **marks}, {**marks, **values_of}, unmarked):
        assert repr(values(family, fields)) == repr(dict(sorted(merged(mode, own, seen).items())))


@pytest.mark.parametrize("mode", ["all", "liveall"])
def test_a_label_may_have_the_name_of_that_for_processes(mode: str) -> None:
    """Where a series has a label ``pid``, too, each value of each process is shown with that of its process."""
    family = Family("m", "gauge", "", labelnames=("pid",), mode=mode)
    fields = {f"{family.process_prefix('1-a')}{dump({'pid': label})}": f"{label} {NOW}" for label in "12"}
    shown = family.metric(fields, NOW).samples
    assert [(sample.labels, sample.value) for sample in shown] == [({"pid": "1-a"}, 1.0), ({"pid": "1-a"}, 2.0)]


@pytest.mark.parametrize("mode", ["liveall", "livesum", "livemin", "livemax", "livemostrecent"])
def test_no_living_process_is_no_series(mode: str) -> None:
    """A live mode without a living process shows no series; a process without a mark is not alive."""
    family = Family("m", "gauge", "", mode=mode)
    assert values(family, {family.process_prefix("1-a") + "{}": "3.0 900.0"}) == {}


def test_infinities_of_processes_make_a_sum_nan() -> None:
    """Values of processes add up as IEEE doubles do."""
    family = Family("m", "gauge", "", mode="sum")
    fields: dict[str, object] = {family.process_prefix(str(value)) + "{}": f"{value} 1" for value in (math.inf, -math.inf)}
    assert math.isnan(values(family, fields)["m",])


def test_exemplars_belong_to_their_field() -> None:
    """An exemplar is shown with the sample of its field only."""
    family = Family("m", "histogram", "", bounds=("1.0", "+Inf"))
    field = '_bucket:{"le":"1.0"}'
    fields = {field: 1.0, f"#exemplar{field}": exemplar_text({"trace_id": "é"}, math.inf, 12.5), '_bucket:{"le":"+Inf"}': 1.0}
    exemplars = [sample.exemplar for sample in family.metric(fields, NOW).samples]
    assert exemplars == [Exemplar({"trace_id": "é"}, math.inf, 12.5), None, None, None]


@pytest.mark.parametrize(
    ("family", "fields", "expected"),
    [
        (Family("m", "gauge", ""), {":{}": "on"}, {("m",): 0.0}),
        (Family("m", "stateset", "", states=("on", "off")), {":{}": 1.0}, {("m", "on"): 0.0, ("m", "off"): 0.0}),
        (Family("m", "counter", ""), {"_sum:{}": 5.0, "_created:{}": 1.0}, {("m_total",): 0.0, ("m_created",): 1.0}),
        (Family("m", "info", ""), {"_created:{}": 1.0}, {}),
    ],
)
def test_fields_of_another_type_do_no_harm(
    family: Family, fields: dict[str, object], expected: dict[tuple[str, ...], float]
) -> None:
    """Fields of another type that the name once had are ignored, or count as zero."""
    assert values(family, fields) == expected


def test_a_clock_that_was_put_back_makes_nobody_alive() -> None:
    """A process last seen hours in the future is not alive until it is seen again."""
    family = Family("busy", "gauge", "", mode="livesum")
    for seen, shown in ((NOW + 7200, {}), (NOW + 1, {("busy",): 1.0}), (NOW - 7200, {})):
        assert values(family, {"#live:w:{}": "1.0 1.0", "#mark:w": f"1 {seen}"}) == shown


any_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "le"]), inner, max_size=2),
    max_leaves=4,
).map(json.dumps)
any_value = (
    any_json
    | st.text(max_size=4)
    | st.floats()
    | st.none()
    | st.sampled_from(["1.0 2.0", "[" * 100_000, '{"w": [Infinity, 1]}'])
)
any_field = st.just("#writers") | st.builds(
    str.__add__,
    st.sampled_from(["", "_total", "_bucket", "_sum", "_created", "_info", "#live:w", "#process:w", "#exemplar_total"]),
    st.builds(str.__add__, st.just(":"), st.sampled_from(["{}", '{"a":"b"}', '{"le":"1.0"}']) | any_json),
)
any_meta = any_json | st.builds(
    lambda kind, mode, key, value: json.dumps({"name": "x", "type": kind, "documentation": "", "mode": mode, key: value}),
    st.sampled_from(["counter", "gauge", "summary", "histogram", "info", "stateset"]),
    st.sampled_from(["shared", "livesum", "mostrecent"]),
    st.sampled_from(["name", "type", "documentation", "labelnames", "mode", "bounds", "states", "added"]),
    any_json.map(json.loads),
)


@settings(max_examples=150, deadline=None)
@given(any_meta, st.dictionaries(any_field, any_value, max_size=4))
@example('{"name": "x", "type": "histogram", "documentation": ""}', {"_sum:{}": 1.0})
@example('{"name": "x", "type": "gauge", "documentation": null}', {})
@example('{"name": null, "type": "gauge", "documentation": ""}', {})
@example('{"name": "x", "type": {}, "documentation": ""}', {})
@example('{"name": "x", "type": "gauge", "documentation": ""}', {':{"a":1}': 1.0})
@example('{"name": "x", "type": "gauge", "documentation": ""}', {':{"a":"\\ud800"}': 1.0})
@example('{"name": "x", "type": "gauge", "documentation": ""}', {":" + "[" * 100_000: 1.0})
@example(
    '{"name": "x", "type": "gauge", "documentation": "", "mode": "livesum"}',
    {"#writers": '{"w": [Infinity, 1]}', "#live:w:{}": "1 1"},
)
def test_any_stored_fields_are_rendered_or_refused(meta: str, fields: dict[str, object]) -> None:
    """The fields of a metric with any content are text that parses, or a StorageError, never another error."""
    try:
        found = families({"x": {META: meta, **fields}}, NOW)
    except StorageError:
        return
    registry = CollectorRegistry()
    registry.collect = lambda: found  # type: ignore[method-assign]  # no collector is registered
    list(parse_text(generate_latest(registry).decode()))
    generate_openmetrics(registry)

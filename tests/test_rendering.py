"""Rendering: text that is put together from parts is the text of prometheus_client, also when layouts are used again."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle
from typing import Any

import prometheus_client
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import exposition as text
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics

from pdc.exemplars import EXEMPLAR, exemplar_text
from pdc.exposition import rendering
from pdc.exposition.rendering import AnyEncoder, Collected, Encoder, Renderer
from pdc.exposition.series import CHUNK
from pdc.family import Family, Page, clean, dump, families
from pdc.metrics.samples import Sampler
from pdc.storage import META, Snapshot
from pdc.storage.labels import around_bound

NOW = 1000.0
ESCAPINGS = (openmetrics.ALLOWUTF8, openmetrics.UNDERSCORES, openmetrics.DOTS, openmetrics.VALUES)
ENCODERS = [Encoder(openmetrics=kind, escaping=escaping) for kind in (False, True) for escaping in ESCAPINGS]
SUFFIXES = {
    "counter": ["_total", "_created"],
    "gauge": [""],
    "summary": ["_count", "_sum", "_created"],
    "histogram": ["_sum", "_created"],
    "stateset": [""],
}
Metrics = dict[str, dict[str, Any]]

names = st.sampled_from(["m", "m_bytes", "a.b", "é", "100%", "#", 'x{a="b"}', "m_created", "n:o"])
label_names = st.sampled_from(["a", "le_", "z", "é", "a.b", "%s", "pid", '"'])
exemplar_names = label_names.filter(lambda name: name != '"')  # no format can carry that
label_values = st.text(st.characters(), max_size=8).map(clean) | st.sampled_from(
    ['a="b"', "\n", "\\", "%s", " 0.0\n", "{}", "\r"]
)
numbers = (
    st.floats()
    | st.sampled_from([0.0, -0.0, 1e6, 1e21, 123456789.0])
    | st.floats().map(repr)
    | st.sampled_from(["7", "-0", "on"])
)
bounds = st.sampled_from(["-1.0", "0.0", "0.5", "1.0", "1e+06", "+Inf"])


@st.composite
def stored_metrics(draw: st.DrawFn) -> Metrics:
    """Fields of some metrics, in any order, as a storage may hold them."""
    metrics: Metrics = {}
    for name in draw(st.lists(names, max_size=4, unique=True)):
        kind = draw(st.sampled_from(sorted(SUFFIXES)))
        unit = "bytes" if name.endswith("_bytes") or draw(st.booleans()) else ""
        declared = tuple(sorted({"+Inf", *draw(st.sets(bounds))}, key=float))
        own_names = label_names if kind == "histogram" else label_names | st.just("le")  # which only means something there
        labelnames = tuple(draw(st.lists(own_names, max_size=3, unique=True)))
        mode = draw(st.sampled_from(["shared", "livesum", "liveall", "min"])) if kind == "gauge" else "shared"
        family = Family(name, kind, draw(label_values), unit, labelnames, mode, declared, ("on", "off"))
        declared_labels = st.fixed_dictionaries(dict.fromkeys(labelnames, label_values))
        fields: dict[str, Any] = {}
        for labels in draw(st.lists(declared_labels | st.dictionaries(own_names, label_values, max_size=3), max_size=4)):
            own = family.process_prefix(draw(st.sampled_from(["1-a", "2-b"]))) + dump(labels)
            fields |= {own: f"{draw(st.floats())!r} {draw(st.sampled_from([0.0, NOW]))!r}"} if mode != "shared" else {}
            chosen = [f"{suffix}:{dump(labels)}" for suffix in SUFFIXES[kind] if suffix == "" or draw(st.booleans())]
            if kind == "histogram":
                chosen += ["_bucket:" + le.join(around_bound(dump(labels))) for le in draw(st.sets(bounds))]
            for field in chosen:
                fields[field] = draw(numbers)
                if field.startswith(("_total", "_bucket")) and draw(st.booleans()):
                    fields[EXEMPLAR + field] = exemplar_text(
                        draw(st.dictionaries(exemplar_names, label_values, max_size=1)), 1.5, NOW
                    )
        shuffled = draw(st.permutations([*fields.items(), (META, family.meta), ("#writers", "{}")]))
        metrics[name] = dict(shuffled)
    return metrics


def rendered(renderer: Renderer, metrics: Metrics, encoder: AnyEncoder, *others: Metric) -> bytes:
    """The renderer's text of the metrics, of which it gets a copy."""
    snapshot = Snapshot(NOW, {name: dict(fields) for name, fields in metrics.items()})
    return renderer.render(snapshot, encoder, lambda _: encoder.encode(others))


def expected(metrics: Metrics, encoder: Encoder, *others: Metric) -> bytes:
    """The text of prometheus_client's encoder."""
    shown: Iterable[Metric] = [*families(metrics, NOW, Page(encoder.escaping)), *others]
    encode: Any = openmetrics.generate_latest if encoder.openmetrics else text.generate_latest
    return bytes(encode(Collected(shown), escaping=encoder.escaping))


@settings(derandomize=True, deadline=None, max_examples=200)
@given(stored_metrics(), st.sampled_from(ENCODERS), st.lists(numbers, min_size=5, max_size=5))
def test_text_is_that_of_prometheus_client(metrics: Metrics, encoder: Encoder, others: list[Any]) -> None:
    """Any families are rendered byte for byte alike in every format, at first, again, and with other numbers."""
    renderer = Renderer()
    assert rendered(renderer, metrics, encoder) == expected(metrics, encoder)
    assert rendered(renderer, metrics, encoder) == expected(metrics, encoder)
    turns = cycle(others)
    changed = {
        name: {field: value if field.startswith("#") else next(turns) for field, value in fields.items()}
        for name, fields in metrics.items()
    }
    assert rendered(renderer, changed, encoder) == expected(changed, encoder)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(stored_metrics(), st.lists(numbers, min_size=5, max_size=5))
def test_samples_are_those_of_the_family(metrics: Metrics, others: list[Any]) -> None:
    """A sampler makes the samples of `Family.metric` of any fields, whatever it made before."""
    sampler, turns = Sampler(), cycle(others)
    for fields in metrics.values():
        family = Family.from_meta(fields[META])
        changed = {field: value if field.startswith("#") else next(turns) for field, value in fields.items()}
        for stored in (fields, changed, dict([*fields.items()][::-1]), dict([*fields.items()][1:]), fields):
            assert repr(sampler.metric(family, stored, NOW)) == repr(family.metric(stored, NOW))


def test_samples_follow_the_values() -> None:
    """Labels of infos, states and values of processes show in the next samples, with labels that users may change."""
    of_processes = [{"#live:1-a:{}": f"{value} {at}", "#mark:1-a": "1 900"} for value, at in ((1, NOW), (2, NOW), (2, 0))]
    infos = [{f'_info:{{"a":"{n}"}}': f'{{"b":"{n % k}"}}' for n in range(3)} for k in (2, 3)]
    changes: list[tuple[Family, list[dict[str, str]]]] = [
        (Family("i", "info", "", labelnames=("a",)), infos),
        (Family("s", "stateset", "", states=("on", "off")), [{":{}": "on"}, {":{}": "off"}]),
        (Family("g", "gauge", "", mode="livesum"), of_processes),
    ]
    for family, versions in changes:
        sampler = Sampler()
        for fields in versions:
            for _ in range(2):
                metric = sampler.metric(family, fields, NOW)
                assert repr(metric) == repr(family.metric(fields, NOW))
                for sample in metric.samples:
                    sample.labels["changed"] = "yes"


@pytest.mark.parametrize("encoder", ENCODERS)
def test_layouts_follow_the_fields(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Created and removed series, other help, the order of fields, creation times and formats show in the next text."""
    renderer = Renderer()
    meta = Family("m", "counter", "Help").meta
    one: dict[str, Any] = {META: meta, '_total:{"a":"1"}': 1.0, '_created:{"a":"1"}': 5.0}
    two = {**one, '_total:{"a":"2"}': 2.0}
    scrapes: list[Metrics] = [{"m": one}, {"m": two}, {"m": dict(reversed(two.items()))}, {"m": one}]
    scrapes += [{"m": {**one, META: Family("m", "counter", "Other").meta}}, {}, {"m": one}]
    for metrics in scrapes:
        assert rendered(renderer, metrics, encoder) == expected(metrics, encoder)
    assert rendered(renderer, {"m": two}, Encoder()) == expected({"m": two}, Encoder())
    monkeypatch.setattr(prometheus_client.metrics, "_use_created", False)
    assert rendered(renderer, {"m": two}, encoder) == expected({"m": two}, encoder)
    assert b"_created" not in rendered(renderer, {"m": two}, encoder)


def test_layouts_are_used_again_and_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same fields make no new layout, and a renderer keeps no layout of a metric that the last scrape did not see."""
    made: list[str] = []
    draft = rendering._Draft

    def counted(family: Family, *args: Any, **options: Any) -> Any:
        made.append(family.name)
        return draft(family, *args, **options)

    monkeypatch.setattr(rendering, "_Draft", counted)
    renderer = Renderer()
    metrics: Metrics = {name: {META: Family(name, "gauge", "").meta, ":{}": 1.0} for name in ("a", "b")}
    for value in (1.0, 2.0):
        metrics["a"][":{}"] = value
        rendered(renderer, metrics, Encoder())
    assert made == ["a", "b"]
    rendered(renderer, {"a": metrics["a"]}, Encoder())
    assert set(renderer._layouts) == {"a"}


@pytest.mark.parametrize("count", [CHUNK - 1, CHUNK, 2 * CHUNK + 1])
def test_large_families_are_sorted_and_whole(count: int) -> None:
    """Families that are rendered in several chunks have all their series, sorted by label values."""
    fields = {f'_total:{{"a":"{number * 7919 % count}"}}': float(number) for number in range(count)}
    metrics: Metrics = {"m": {META: Family("m", "counter", "").meta, **fields}}
    assert rendered(Renderer(), metrics, Encoder()) == expected(metrics, Encoder())


def test_labels_of_others_are_those_of_the_same_series() -> None:
    """Labels that another program has spelled with spaces, or in another order, belong to the series of ours."""
    family = Family("m", "histogram", "", labelnames=("a", "z"), bounds=("1.0", "+Inf"))
    fields: dict[str, Any] = {META: family.meta, '_sum:{"a": "1", "z": "2"}': 3.0, '_sum:{"z":"4","a":"3"}': 5.0}
    spelled = ['{"a":"1","le":"1.0","z":"2"}', '{"a": "3", "le": "+Inf", "z": "4"}', '{"le":"1.0","z":"4", "a":"3"}']
    spelled += ['{"z":"2","a":"1", "le":"+Inf"}', '{"le":"1.0", "b":"\\"le\\":\\"2"}', '{"x\\"le":"1.0","le":"2.0"}']
    metrics: Metrics = {"m": {**fields, **{f"_bucket:{labels}": 1.0 for labels in spelled}}}
    for encoder in ENCODERS:
        assert rendered(Renderer(), metrics, encoder) == expected(metrics, encoder)


def test_exemplars_of_any_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each series may have exemplars in other buckets, and an exemplar without its bucket or series is not shown."""
    monkeypatch.setattr(rendering, "MOST_SHAPES", 3)
    bounds = ("0.1", "1.0", "+Inf")
    fields: dict[str, Any] = {META: Family("m", "histogram", "", labelnames=("a",), bounds=bounds).meta}
    for number in range(16):
        for place, le in enumerate(bounds):
            field = f'_bucket:{{"a":"{number % 12}","le":"{le}"}}'
            if number < 12 and (number, place) != (5, 0):
                fields[field] = 1.0
            if number >> place & 1:
                fields[EXEMPLAR + field] = exemplar_text({"trace": str(number)}, 0.5, NOW)
    fields[EXEMPLAR + '_bucket:{"a":"x","le":"1.0"}'] = exemplar_text({}, 0.5, NOW)
    for encoder in ENCODERS:
        assert rendered(Renderer(), {"m": fields}, encoder) == expected({"m": fields}, encoder)


def test_other_families_come_last() -> None:
    """The other collectors of a registry follow the storage, before the end."""
    metric = Metric("other", "Help", "gauge")
    metric.add_sample("other", {}, 1.0)
    for encoder in ENCODERS:
        metrics: Metrics = {"z": {META: Family("z", "gauge", "").meta, ":{}": 1.0}}
        assert rendered(Renderer(), metrics, encoder, metric) == expected(metrics, encoder, metric)

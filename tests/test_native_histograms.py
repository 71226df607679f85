"""Native histograms: what processes of any resolutions store, and what a page of text shows."""

from __future__ import annotations

import json
import math
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Peer, RedisServer
from fault_proxy import Fault, FaultProxy
from helpers import AT_ONCE, INTERVALS, Run, hasten, script, shown
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from journals import Journal
from natives import coarsen, folded
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse

import pdc
from pdc.cells.buckets import Window, buckets_of, key_of
from pdc.cli.rates import Moment, Rates
from pdc.dashboard import as_classic
from pdc.delivery import Buffer
from pdc.exposition.collection import render
from pdc.exposition.rendering import Encoder
from pdc.family import Family
from pdc.http.families import RequestSeries
from pdc.jobs.native import native_histograms
from pdc.jobs.tasks import ExporterMetrics, MiddlewareMetrics, TaskMetrics
from pdc.native import SCHEMAS, Bucket, bound, index_of
from pdc.options import OptionError, Options
from pdc.storage import META, Storage, StorageError
from pdc.storage.redis import RedisStorage
from pdc.storage.sqlite import SqliteStorage

ALL = (0.1, 0.1, 3.0, -3.0, 0.0, 2.0**-129, math.inf, -math.inf, math.nan)
"""An observation of each kind."""


def stored(metric: str) -> dict[str, float]:
    """The fields of a metric that are numbers, without times of creation."""
    (fields,) = (pdc.config.DEFAULT.read([metric]).metrics[metric],)
    return {field: float(value) for field, value in fields.items() if field[0] == "_" and not field.startswith("_created")}


def schema_of(schema: int, **options: Any) -> pdc.Native:
    """A resolution of that schema."""
    return pdc.Native(factor=2.0**2.0**-schema, **options)


@pytest.mark.usefixtures("ready")
def test_each_bucket_is_a_field(registry: CollectorRegistry) -> None:
    """A field has the schema and the index of its bucket; both kinds come from one observation, without empty buckets."""
    only = pdc.Histogram("only", "Help", ["a"], buckets=(), native=True, registry=registry)
    both = pdc.Histogram("both", "Help", buckets=(1,), native=schema_of(0), registry=registry)
    for number in ALL:
        only.labels('"').observe(number)
        both.observe(number)
    found = stored("only")
    assert math.isnan(found.pop('_sum:{"a":"\\""}'))
    buckets = {"3p-26": 2, "3p13": 1, "3n13": 1, "3z-1024": 2, "3p8193": 1, "3n8193": 1, "nan": 1}
    assert found == {f'_native:{{"a":"\\"","le":"{le}"}}': count for le, count in buckets.items()}
    found = stored("both")
    assert math.isnan(found.pop("_sum:{}"))
    buckets = {"0p-3": 2, "0p2": 1, "0n2": 1, "0z-128": 2, "0p1025": 1, "0n1025": 1, "nan": 1}
    classic = {"1.0": 6.0, "+Inf": 3.0}
    assert found == {
        **{f'_native:{{"le":"{le}"}}': count for le, count in buckets.items()},
        **{f'_bucket:{{"le":"{le}"}}': count for le, count in classic.items()},
    }


@pytest.mark.usefixtures("ready")
def test_text_shows_powers_of_two(registry: CollectorRegistry) -> None:
    """A histogram with native buckets only has the bounds around its observations, and no sum where some are negative."""
    waits = pdc.Histogram("waits", "Help", ["a"], buckets=(), native=True, registry=registry)
    for number in (0.1, 0.2, 0.25, 7.0, 8.0):
        waits.labels("1").observe(number)
    for number in ALL:
        waits.labels("2").observe(number)
    waits.labels("3")
    one = {"0.0625": 0, "0.125": 1, "0.25": 3, "4.0": 3, "8.0": 5, "+Inf": 5}
    zero = "2.938735877055719e-39"
    most = "1.7976931348623157e+308"
    two = {f"-{most}": 1, "-4.0": 1, "-2.0": 2, f"-{zero}": 2, zero: 4, "0.0625": 4, "0.125": 6, "2.0": 6, "4.0": 7, most: 7}
    expected: dict[str, float] = {f'waits_bucket{{a="1",le="{le}"}}': count for le, count in one.items()}
    expected |= {'waits_count{a="1"}': 5, 'waits_sum{a="1"}': 15.55}
    expected |= {f'waits_bucket{{a="2",le="{le}"}}': count for le, count in {**two, "+Inf": 9}.items()}
    expected |= {'waits_count{a="2"}': 9, 'waits_bucket{a="3",le="+Inf"}': 0, 'waits_count{a="3"}': 0, 'waits_sum{a="3"}': 0}
    assert shown("waits") == expected
    assert [*shown("waits")] == [*expected]


@pytest.mark.usefixtures("ready")
def test_coarse_schemas_have_their_own_bounds(registry: CollectorRegistry) -> None:
    """Below schema 0 the bounds are powers of 16, for example; a zero bucket ends at a bound; classic bounds stay the same."""
    coarse = pdc.Histogram("a", "Help", buckets=(), native=schema_of(-2, zero_threshold=2), registry=registry)
    fine = pdc.Histogram("b", "Help", buckets=(), native=pdc.Native(zero_threshold=0), registry=registry)
    both = pdc.Histogram("c", "Help", buckets=(1, 2), native=True, registry=registry)
    for number in (1.0, 16.0, 17.0):
        for metric in (coarse, fine, both):
            metric.observe(number)
    fine.observe(0)
    assert shown("a") == {
        'a_bucket{le="16.0"}': 2,
        'a_bucket{le="256.0"}': 3,
        'a_bucket{le="+Inf"}': 3,
        "a_count": 3,
        "a_sum": 34,
    }
    bounds = {"0.0": 1, "0.5": 1, "1.0": 2, "8.0": 2, "16.0": 3, "32.0": 4, "+Inf": 4}
    assert shown("b") == {**{f'b_bucket{{le="{le}"}}': count for le, count in bounds.items()}, "b_count": 4, "b_sum": 34}
    classic = {"1.0": 1, "2.0": 1, "+Inf": 3}
    assert shown("c") == {**{f'c_bucket{{le="{le}"}}': count for le, count in classic.items()}, "c_count": 3, "c_sum": 34}


@pytest.mark.usefixtures("ready")
def test_both_ways_to_render_agree(registry: CollectorRegistry) -> None:
    """A page has the bytes that prometheus_client makes of the same families, with the exemplar of the highest bucket below."""
    waits = pdc.Histogram("waits", "Help", ["a"], buckets=(), native=True, registry=registry)
    for number in (0.1, 0.11, 0.12, 3.0):
        for label in "12":
            waits.labels(label).observe(number, {"trace": str(number)} if number != 0.12 or label == "1" else None)
    for encoder, generate in ((Encoder(), generate_latest), (Encoder(openmetrics=True), generate_openmetrics)):
        for _ in range(2):
            waits.labels("1").observe(0.5)
            assert render(encoder, None) == generate(registry)
    (family,) = parse(render(Encoder(openmetrics=True), None).decode())
    exemplars = {(each.labels["a"], each.exemplar.labels["trace"]) for each in family.samples if each.exemplar}
    assert exemplars == {("1", "0.12"), ("1", "3.0"), ("2", "0.11"), ("2", "3.0")}


class Writer:
    """A process, but for its memory: a writer of its own."""

    def __init__(self, storage: Storage, native: pdc.Native, *, classic: bool = False, name: str = "m") -> None:
        self.buffer = Buffer()
        cls = type("Histogram", (pdc.Histogram,), {"buffer": self.buffer})
        bounds = {} if classic else {"buckets": ()}
        self.metric = cls(name, "Help", native=native, registry=None, **bounds)
        self.buffer.attach(storage, 3600.0, None, thread=threading.get_ident())


NUMBERS = st.floats() | st.sampled_from([0.0, -0.0, 1.0, 2.0, -2.0, 0.5, 5e-324, -5e-324, 2.0**-128, 2.0**-1022])
WRITERS = st.lists(
    st.tuples(
        st.integers(SCHEMAS[0], SCHEMAS[-1]),
        st.sampled_from([2, 160]),
        st.sampled_from([0.0, 2.0**-128, 1e-3, 1e300]),
        st.lists(st.lists(NUMBERS, max_size=4), max_size=3),
    ),
    min_size=1,
    max_size=3,
)


@pytest.fixture
def opened(storage: dict[str, Any]) -> Iterator[Storage]:
    """The storage itself."""
    is_redis = "redis" in storage
    found: Storage = RedisStorage(storage["redis"], storage["redis_prefix"]) if is_redis else SqliteStorage(storage["sqlite"])
    yield found
    found.close()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(writers=WRITERS)
def test_processes_of_any_resolutions_are_one_of_the_coarsest(
    opened: Storage, monkeypatch: pytest.MonkeyPatch, writers: list[tuple[int, int, float, list[list[float]]]]
) -> None:
    """Each bucket has what one process with the coarsest schema and the widest zero bucket observes in it.

    Where buckets are too many, the storage has added them to coarser ones, and they have what they would have had there.
    """
    hasten(monkeypatch, **AT_ONCE)
    opened.delete()
    schema, threshold = min(writer[0] for writer in writers), max(writer[2] for writer in writers)
    one = Writer(opened, schema_of(schema, zero_threshold=threshold), name="one")
    for number, (own, most, zero, flushes) in enumerate(writers):
        writer = Writer(opened, schema_of(own, max_buckets=most, zero_threshold=zero), classic=number % 2 == 1)
        for observations in flushes:
            for each in observations:
                writer.metric.observe(each)
                one.metric.observe(each)
            writer.buffer.flush()
        writer.buffer.detach()
    one.buffer.detach()
    fewest = min(writer[1] for writer in writers)
    last = Writer(opened, schema_of(schema, max_buckets=fewest, zero_threshold=threshold))  # declares it as the other one is
    last.buffer.flush()
    last.buffer.detach()
    found = folded(opened.read(["m"]), "m")
    assert found.schema == schema or fewest == 2
    assert found == folded(opened.read(["one"]), "one", found.schema)
    assert found.count == sum(map(len, (each for *_, flushes in writers for each in flushes)))
    assert coarsen(opened, "m", 2 * fewest) <= 2 * fewest or found.schema == SCHEMAS[0]


@INTERVALS
def test_a_process_shows_the_kinds_of_buckets_that_it_declares(
    storage: dict[str, Any], start_peer: Callable[..., Peer], interval: float, registry: CollectorRegistry
) -> None:
    """Another process, with the same histogram without native buckets, takes them from no page of one that has them."""
    pdc.setup(**storage, flush_interval=interval)
    pdc.Histogram("m", "Help", native=True, registry=registry).observe(3)
    page = pdc.generate_latest()
    other = start_peer(storage)
    other.tell("m = pdc.Histogram('m', 'Help'); m.observe(3); assert 'native' not in repr(m._metric_cells.meta)")
    for _ in range(2):
        found = pdc.config.DEFAULT.read().metrics["m"]
        assert Family.from_meta(found[META]).native == pdc.Native()
    assert pdc.generate_latest() == page.replace(b" 1.0", b" 2.0").replace(b"_sum 3.0", b"_sum 6.0")
    other.tell("found = pdc.config.DEFAULT.read().metrics['m']['#meta']; assert 'native' not in found")
    assert "set PDC_NATIVE_HISTOGRAMS" in other.stop()


def test_a_process_shows_classic_buckets_beside_native_ones(
    storage: dict[str, Any], start_peer: Callable[..., Peer], registry: CollectorRegistry
) -> None:
    """Another process, with native buckets alone, takes the classic ones from no page of one that has both."""
    pdc.setup(**storage)
    pdc.Histogram("m", "Help", native=True, registry=registry).observe(3)
    other = start_peer(storage)
    other.tell("m = pdc.Histogram('m', 'Help', native=True, buckets=()); m.observe(3)")
    assert b'm_bucket{le="2.5"} 0.0' in pdc.generate_latest()
    other.tell("""assert b'm_bucket{le="2.5"}' not in pdc.generate_latest()""")


@pytest.mark.usefixtures("ready")
def test_a_process_goes_on_with_larger_buckets_over_the_most(registry: CollectorRegistry) -> None:
    """A process with too many buckets lowers its schema for what comes; what it counted before stays, and adds up."""
    metric = pdc.Histogram("m", "Help", buckets=(), native=pdc.Native(max_buckets=4), registry=registry)
    for power in range(12):
        metric.observe(2.0**power)
        counted = Counter(Bucket.loads(field.split('"')[3]).schema for field in stored("m") if field.startswith("_native"))
        assert max(counted.values()) <= 4
        assert folded(pdc.config.DEFAULT.read(["m"]), "m").count == power + 1
    assert sorted(counted) == [-2, -1, 3]
    found = folded(pdc.config.DEFAULT.read(["m"]), "m")
    assert found.schema == min(counted)
    assert found.positive == Counter(index_of(found.schema, 2.0**power) for power in range(12))


class Single:
    """A number of four bytes, as a float32 of numpy: it compares with a float as if that had four bytes, too."""

    def __init__(self, number: float) -> None:
        (self.number,) = struct.unpack("f", struct.pack("f", number))

    def __float__(self) -> float:
        return float(self.number)

    def __add__(self, other: float) -> Single:
        return Single(self.number + other)

    def __radd__(self, other: float) -> float:
        return other + float(self)

    def __gt__(self, other: float) -> bool:
        return float(self) > float(Single(other))


@pytest.mark.usefixtures("ready")
def test_numbers_that_equal_the_bound_below_them(registry: CollectorRegistry) -> None:
    """An observation of a short type is in the bucket of its value, also where it seems equal to the bound below that one."""
    metric = pdc.Histogram("m", "Help", buckets=(), native=schema_of(6), registry=registry)
    low = next(each for index in range(0, 80, 8) if float(Single(each := bound(6, index))) > each)
    metric.observe(low * 1.001)
    metric.observe(Single(low))  # type: ignore[arg-type]  # as numbers of numpy
    assert folded(pdc.config.DEFAULT.read(["m"]), "m").positive == {index_of(6, float(Single(low))): 2}


def test_a_window_has_few_buckets() -> None:
    """It grows by neighbours, then by single buckets, and holds no more than allowed, but in the coarsest schema."""
    native, used, window = pdc.Native(max_buckets=20), frozenset[tuple[str, int]](), Window(3)
    for number in (1.0, 100.0):
        window, used = window.widened(native, used, number)
    assert (len(window.keys), window.schema) == (16, 3)
    used = frozenset({("p", 0), ("p", 54)})
    window, used = window.widened(native, used, 1e4)
    assert (len(window.keys), used <= window.keys) == (10, True)
    window, used = window.widened(native, frozenset(("n", index) for index in range(2, 21)), 1e8)
    assert (len(window.keys), window.schema) == (20, 3)
    window, used = window.widened(native, frozenset(("n", index) for index in range(1, 21)), 1e8)
    assert (window.schema, used) == (2, frozenset(("n", index) for index in range(1, 11)))
    every = frozenset(("p", index) for index in range(-60, 60))
    window, used = Window(-4).widened(native, every, -1.0)
    assert (window.schema, len(window.keys)) == (-4, 121)


@INTERVALS
def test_threads_that_need_new_buckets_at_once(interval: float, storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """No observation is lost where threads find the same bucket missing, and cells that are outgrown do not stay."""
    pdc.setup(**storage, flush_interval=interval)
    metric = pdc.Histogram("m", "Help", native=pdc.Native(max_buckets=20), registry=registry)
    barrier = threading.Barrier(4)

    def work() -> None:
        for power in range(-20, 20):
            barrier.wait()
            metric.observe(2.0**power)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pdc.flush()
    assert folded(pdc.config.DEFAULT.read(["m"]), "m").count == 160
    assert shown("m_count") == {"m_count": 160}
    assert len(metric._metric_cells.cells) <= 5


@INTERVALS
def test_a_removed_series_stays_removed(interval: float, storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """A removal also takes what outgrown cells still had to send; a new series begins at 0."""
    pdc.setup(**storage, flush_interval=interval)
    metric = pdc.Histogram("m", "Help", ["a"], buckets=(), native=True, registry=registry)
    held = metric.labels("1")
    for power in range(0, 100, 10):
        held.observe(2.0**power)
        metric.labels("2").observe(2.0**power)
    metric.remove("1")
    held.observe(1e-9)
    assert shown("m_count") == {'m_count{a="2"}': 10}
    metric.labels("1").observe(0.5)
    metric.remove_by_labels({"a": "2"})
    assert shown("m_count") == {'m_count{a="1"}': 1}
    assert sorted(field for field in stored("m")) == ['_native:{"a":"1","le":"3p-8"}', '_sum:{"a":"1"}']


def test_series_over_the_limit_are_one(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """The observations of further series are in the native buckets of the overflow series, also those of other processes."""
    pdc.setup(**storage)
    metric = pdc.Histogram("m", "Help", ["a"], buckets=(), native=True, max_series=1, registry=registry)
    metric.labels("1").observe(1)
    other = type("Histogram", (pdc.Histogram,), {"buffer": pdc.config.DEFAULT})
    twin = other("m", "Help", ["a"], buckets=(), native=True, max_series=1, registry=None)
    for label in "23":
        twin.labels(label).observe(2)
    assert shown("m_count") == {'m_count{a="1"}': 1, 'm_count{a="<overflow>"}': 2}
    assert stored("m")['_native:{"a":"<overflow>","le":"3p8"}'] == 2


def test_the_next_process_sends_what_a_killed_one_observed(journal: Journal) -> None:
    """A journal keeps the windows of cells, also of outgrown ones, and of both kinds of buckets."""
    journal.leave(
        """
        waits = pdc.Histogram("waits", "Help", ["a"], native=pdc.Native(max_buckets=30))
        only = pdc.Histogram("only", "Help", buckets=(), native=True)
        for power in range(-30, 30):
            waits.labels("1").observe(2.0 ** power)
            only.observe(-(3.0 ** power))
            if power == 0:
                pdc.flush()
        only.observe(float("nan"))
        """
    )
    journal.send()
    assert shown("waits_count") == {'waits_count{a="1"}': 60}
    found = folded(pdc.config.DEFAULT.read(["waits"]), "waits")
    assert (found.count, shown("waits_sum")) == (60, {'waits_sum{a="1"}': math.fsum(2.0**power for power in range(-30, 30))})
    assert found.positive == Counter(index_of(found.schema, 2.0**power) for power in range(-30, 30))
    found = folded(pdc.config.DEFAULT.read(["only"]), "only")
    assert found.negative == Counter(index_of(3, 3.0**power) for power in range(-30, 30))
    assert (found.nan, found.count) == (1, 61)


def test_old_readers_skip_what_they_do_not_know() -> None:
    """A reader without native buckets finds the bound of infinity, and shows a histogram without observations."""
    metric = pdc.Histogram("m", "Help", buckets=(), native=True, registry=None)
    family = metric._metric_cells.family
    assert (family.bounds, family.classic, family.native) == (("+Inf",), (), (1.1, 160, 2.0**-128))
    old = family._replace(native=())
    fields = {"_sum:{}": 3.0, '_native:{"le":"3p13"}': 1.0}
    assert [(each.name, each.value) for each in old.metric(fields, 0.0).samples] == [
        ("m_bucket", 0.0),
        ("m_count", 0.0),
        ("m_sum", 3.0),
    ]
    assert "native" not in pdc.Histogram("n", "Help", registry=None)._metric_cells.family.meta


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"native": 1.1}, TypeError, "native must be True, False or a pdc.Native, got 1.1"),
        ({"native": "true"}, TypeError, "got 'true'"),
        ({"native": pdc.Native()._replace(factor=0.5)}, ValueError, "factor must be a number above 1"),
        ({"buckets": ()}, ValueError, "Must have at least two buckets"),
        ({"native": True, "buckets": (2, 1)}, ValueError, "Buckets not in sorted order"),
        ({"native": True, "buckets": (math.nan,)}, ValueError, "each bucket must be a number"),
        ({"native": True, "labelnames": ["le"]}, ValueError, "Reserved label"),
    ],
)
def test_impossible_histograms_are_refused(options: dict[str, Any], error: type[Exception], says: str) -> None:
    """The error comes where the metric is declared."""
    with pytest.raises(error, match=says):
        pdc.Histogram("m", "Help", registry=None, **options)


@pytest.mark.parametrize(
    "parts",
    [[], [9, [], []], [3, []], [3, [[1, 0]], []], [3, [[1, 99]], []], [3, [[1 << 20, 1]], []], [3, [1], []], ["3", [], []]],
)
def test_windows_of_no_version_are_refused(parts: list[Any]) -> None:
    """A journal with impossible windows is damaged."""
    with pytest.raises((ValueError, TypeError, LookupError)):
        Window.loads(*parts, most=10)


@settings(deadline=None)
@given(st.integers(SCHEMAS[0], SCHEMAS[-1]), st.lists(NUMBERS, max_size=6), st.lists(st.floats(allow_nan=False), max_size=4))
def test_each_number_has_one_place(schema: int, numbers: list[float], classic: list[float]) -> None:
    """A place adds to the native bucket of the number, and to its classic one; windows are the same after a journal."""
    native = schema_of(schema)
    window = Window(schema)
    for number in numbers:
        if number == number:
            window, _ = window.widened(native, frozenset(), number)
    signs: Any = window.positive, window.negative
    assert Window.loads(schema, *signs, most=10**6) == window
    bounds = tuple(str(each) for each in sorted({*classic, math.inf})) if classic else ()
    buckets = buckets_of(bounds, native, window)
    for number in numbers:
        place = buckets.place_of(number)
        assert place, number
        fields = dict(buckets.fields[place])
        found = fields["_native:"]
        zero = native.zero_index(schema) or 0
        size = index_of(schema, abs(number)) if number and number == number else None
        if number != number:
            assert found == "nan"
        elif size is None or size <= zero:
            assert Bucket.loads(found).kind == "z"
        else:
            assert found == Bucket(schema, "p" if number > 0 else "n", size).dumps()
        if classic:
            assert fields["_bucket:"] == next((each for each in bounds if number <= float(each)), bounds[-1])


def test_the_option_is_for_all_histograms_of_pdc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`PDC_NATIVE_HISTOGRAMS` gives native buckets to requests, WebSockets, jobs and tasks, beside the classic ones."""
    monkeypatch.setenv("PDC_NATIVE_HISTOGRAMS", "yes")
    pdc.setup(sqlite=str(tmp_path / "metrics.db"))
    series = RequestSeries(Options.load({"PDC_SIZES": True, "PDC_FIRST_BYTE": True}))
    assert series.families
    assert series.websockets.duration
    for metrics in (TaskMetrics("celery"), ExporterMetrics(), MiddlewareMetrics()):
        metrics.started("task", "queue", "worker", 1.0)
        metrics.timed("task", "queue", "success", 1.0)
    with pdc.job("nightly"):
        pass
    pdc.flush()
    stored = pdc.config.DEFAULT.read().metrics.values()
    families = [family for family in (Family.from_meta(fields[META]) for fields in stored) if family.type == "histogram"]
    assert [(family.name, family.native) for family in families if not family.native or not family.classic] == []
    assert len(families) == 11
    monkeypatch.setenv("PDC_NATIVE_HISTOGRAMS", "some")
    for wrong in (lambda: Options.load({}), native_histograms):
        with pytest.raises(OptionError, match="PDC_NATIVE_HISTOGRAMS must be true or false, got 'some'"):
            wrong()
    monkeypatch.delenv("PDC_NATIVE_HISTOGRAMS")
    assert not native_histograms()


@pytest.mark.long
@pytest.mark.parametrize("interval", [0, 0.05])
def test_processes_that_are_killed_count_exactly(
    storage: dict[str, Any], request: pytest.FixtureRequest, run_script: Run, interval: float
) -> None:
    """Of 24 killed processes of four resolutions, with lost replies, each bucket has all acknowledged observations once.

    That holds, and buckets are few, while buckets are added to coarser ones all the time.
    """
    used = storage
    if "redis" in storage:
        proxy = request.getfixturevalue("losing_proxy")
        used = {**storage, "redis": proxy.url}
    counted, last = json.loads(run_script(script("spreads.py"), 24, 16, interval, storage=used).stdout)
    pdc.setup(**storage)
    assert coarsen(pdc.config.DEFAULT.required(), "spread", 80, 10**9) <= 80
    found = folded(pdc.config.DEFAULT.read(["spread"]), "spread")
    assert len(counted) > 1500
    assert found.schema == min(0, found.schema)

    def buckets(numbers: list[float]) -> Counter[str]:
        return Counter(
            Bucket(found.schema, *key_of(schema_of(found.schema, zero_threshold=0.01), found.schema, each)).dumps()
            if each == each
            else "nan"
            for each in numbers
        )

    shown_counts = Counter({"nan": int(found.nan), f"{found.schema}z0": int(found.zero_count)})
    shown_counts += Counter({f"{found.schema}p{index}": int(count) for index, count in found.positive.items()})
    shown_counts += Counter({f"{found.schema}n{index}": int(count) for index, count in found.negative.items()})
    more = shown_counts - buckets(counted)
    assert buckets(counted) - shown_counts == Counter()
    assert more - buckets(last) == Counter()


@pytest.fixture
def losing_proxy(redis_server: RedisServer) -> Iterator[FaultProxy]:
    """A proxy that loses one of ten replies."""
    with FaultProxy(redis_server.port) as proxy:
        proxy.every(10, Fault.LOSE, Fault.CUT)
        yield proxy


def test_native_buckets_as_classic_ones(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """The dashboard and the commands count up to the bounds of each native bucket, also of negative numbers, zeros and NaN."""
    pdc.setup(**storage)
    numbers = [-3.0, 0.0, 0.3, 0.4, 1.0, 70.0, math.nan, math.inf]
    only = pdc.Histogram("only", "Help.", ["le_", "a"], buckets=(), native=True, registry=registry).labels('"le":"x"', "é")
    both = pdc.Histogram("both", "Help.", native=True, registry=registry)
    for each in numbers:
        only.observe(each)
        both.observe(each)
    metrics = pdc.config.DEFAULT.required().read().metrics
    assert as_classic("both", metrics["both"]) is metrics["both"]
    shown = as_classic("only", metrics["only"])
    metric = Family.from_meta(shown[META]).metric(shown, 0.0)
    buckets = [sample for sample in metric.samples if sample.name == "only_bucket"]
    assert {tuple(sample.labels) for sample in buckets} == {("a", "le_", "le")}
    counts = {float(sample.labels["le"]): sample.value for sample in buckets}
    assert counts.pop(math.inf) == len(numbers)
    assert counts == {bound: sum(each <= bound for each in numbers) for bound in counts}
    assert {-(2 ** (12 / 8)), 2 ** (-14 / 8), 2 ** (-13 / 8), 1.0} <= {*counts}


def test_rates_while_buckets_become_coarser(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """Between two reads each bucket has grown by what was observed, also where earlier counts went to coarser buckets."""
    pdc.setup(**storage)
    name = "http_request_duration_seconds"
    wait = pdc.Histogram(name, "Help.", ["method", "route", "status"], buckets=(), native=True, registry=registry)
    child, store = wait.labels("GET", "/", "200"), pdc.config.DEFAULT.required()
    for power in range(50):
        child.observe(1.1**power)
    before = Moment.of(store.read())
    coarsen(store, name, 20)
    for power in range(10):
        child.observe(1.1**power)
    (grown,) = Rates(before, Moment.of(store.read()))._buckets().values()
    assert {bound: count for bound, count in grown.items() if count} == {1.0: 1.0, 2**0.5: 3.0, 2.0: 4.0, 2**1.5: 2.0}


def test_a_foreign_field_keeps_no_bucket_from_another_one(tmp_path: Path, registry: CollectorRegistry) -> None:
    """Native buckets become coarser beside fields that are no text, or no bucket of any version."""
    pdc.setup(sqlite=tmp_path / "metrics.db")
    wait = pdc.Histogram("wait", "Help.", buckets=(), native=True, registry=registry)
    for number in (1.1, 1.2, 1.5, 2.1):
        wait.observe(number)
    pdc.flush()
    for field in (b"\xff", "_native:{", '_native:{"le":"99p1","path":"/"}'):
        pdc.get_sqlite_conn().execute("INSERT INTO pdc_metrics VALUES ('wait', ?, 1.0)", [field])
    storage = pdc.config.DEFAULT.required()
    with pytest.raises(StorageError, match="'wait'"):  # read it with the BLOB
        coarsen(storage, "wait", 2)
    pdc.get_sqlite_conn().execute("DELETE FROM pdc_metrics WHERE typeof(subkey) = 'blob'")
    fields = storage.read(["wait"]).metrics["wait"]
    assert sum(field.startswith('_native:{"le":"') and field.endswith('"}') for field in fields) == 3  # one is no bucket


def test_a_broken_native_bucket_is_named(storage: dict[str, Any], registry: CollectorRegistry) -> None:
    """A field that pdc did not write is an error that names the metric."""
    pdc.setup(**storage)
    pdc.Histogram("only", "Help.", buckets=(), native=True, registry=registry).observe(1)
    fields = {**pdc.config.DEFAULT.required().read().metrics["only"]}
    for field in ('_native:{"le":"99p1"}', "_native:{}"):
        with pytest.raises(StorageError, match="'only'"):
            as_classic("only", {**fields, field: "1"})

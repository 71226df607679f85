"""The arithmetic of native histograms."""

from __future__ import annotations

import math
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from natives import Folded

from pdc.native import NAN, SCHEMAS, Bucket, Native, bound, coarsened, coarser, common, index_of, last
from pdc.storage.coarsening import Coarsening

SMALLEST = 5e-324
SCHEMA = st.integers(SCHEMAS[0], SCHEMAS[-1])
POSITIVE = st.floats(min_value=SMALLEST, allow_infinity=True)


@pytest.mark.parametrize(
    ("factor", "schema"),
    [(1.001, 8), (2 ** (1 / 256), 8), (1.1, 3), (2 ** (1 / 8), 3), (1.09, 4), (1.5, 1), (2, 0), (3.9, 0), (4, -1), (1e9, -4)],
)
def test_a_factor_gives_the_coarsest_schema_that_grows_no_faster(factor: float, schema: int) -> None:
    """The schema of a factor has bounds that grow by that factor at most, as far as there is one."""
    assert Native(factor=factor).schema == schema


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"factor": 1}, "factor must be a number above 1, as 1.1, got 1"),
        ({"factor": math.nan}, "got nan"),
        ({"max_buckets": 0}, "max_buckets must be a whole number from 1 on, as 160, got 0"),
        ({"max_buckets": 2.5}, "got 2.5"),
        ({"max_buckets": True}, "got True"),
        ({"zero_threshold": -1.0}, "zero_threshold must be a finite number from 0 on, as 0.001, got -1.0"),
        ({"zero_threshold": math.inf}, "got inf"),
        ({"zero_threshold": "small"}, "zero_threshold must be a finite number from 0 on, as 0.001, got 'small'"),
        ({"factor": "small"}, "factor must be a number above 1, as 1.1, got 'small'"),
        ({"zero_threshold": math.nan}, "got nan"),
    ],
)
def test_impossible_resolutions_are_refused(wrong: dict[str, float], says: str) -> None:
    """The error names the parameter, what is possible, and what was given."""
    with pytest.raises(ValueError, match=says):
        Native(**wrong)  # type: ignore[arg-type]  # as an application may


@pytest.mark.parametrize(
    ("schema", "value", "index"),
    [
        *[(0, value, index) for value, index in [(1.0, 0), (2.0, 1), (2.0000000000000004, 2), (0.5, -1), (3.0, 2), (4.0, 2)]],
        *[(3, value, index) for value, index in [(1.0, 0), (2.0, 8), (1.9999999999999998, 8), (2.0000000000000004, 9)]],
        *[(-1, value, index) for value, index in [(1.0, 0), (4.0, 1), (5.0, 2), (16.0, 2), (2.0, 1), (0.25, -1), (0.2, -1)]],
        *[(-4, value, index) for value, index in [(1.0, 0), (65536.0, 1), (65536.1, 2), (2.0**-16, -1), (SMALLEST, -67)]],
        *[(8, value, index) for value, index in [(1.0, 0), (2.0, 256), (SMALLEST, -1074 * 256)]],
        *[(schema, sys.float_info.max, index) for schema, index in [(8, 1024 * 256), (0, 1024), (-1, 512), (-4, 64)]],
        *[(schema, math.inf, index) for schema, index in [(8, 1024 * 256 + 1), (0, 1025), (-1, 513), (-4, 65)]],
    ],
)
def test_values_are_in_the_buckets_of_client_golang(schema: int, value: float, index: int) -> None:
    """A bucket has its upper bound, not its lower one; infinity has the bucket after that of the largest number."""
    assert index_of(schema, value) == index


def test_bounds_are_those_of_prometheus() -> None:
    """The bounds between 1/2 and 1 in schema 3 are those that Prometheus has, up to the last bit."""
    known = (0.5452538663326288, 0.5946035575013605, 0.6484197773255048, 0.7071067811865475, 0.7711054127039704)
    assert [bound(3, index - 7) for index in range(5)] == pytest.approx(known, rel=2e-16, abs=0)
    assert [bound(-2, 1), bound(0, -1), bound(8, 256), bound(0, 1024)] == [16.0, 0.5, 2.0, sys.float_info.max]
    assert [bound(8, last(8) + 1), bound(-4, last(-4) + 1), bound(5, -1074 * 32 - 1)] == [math.inf, math.inf, 0.0]


@given(SCHEMA, POSITIVE)
def test_a_value_is_between_the_bounds_of_its_bucket(schema: int, value: float) -> None:
    """The bound below is smaller, the bound above is not: bounds can be searched instead of exponents."""
    index = index_of(schema, value)
    assert bound(schema, index - 1) < value <= bound(schema, index)


@given(SCHEMA, POSITIVE)
def test_two_buckets_are_one_of_the_next_schema(schema: int, value: float) -> None:
    """The folded index of a value is its index in the coarser schema."""
    for other in range(SCHEMAS[0], schema + 1):
        assert coarser(index_of(schema, value), schema - other) == index_of(other, value)


@pytest.mark.parametrize("text", ["3p17", "-4n-5", "3z-1024", "8z", "0p0", NAN])
def test_buckets_are_texts(text: str) -> None:
    """The text of a bucket gives the bucket again."""
    assert Bucket.loads(text).dumps() == text


@pytest.mark.parametrize("text", ["", "0.5", "+Inf", "9p1", "3p", "3n", "3p1.5", "p1", "3q1", "-5z"])
def test_other_texts_are_no_buckets(text: str) -> None:
    """The error quotes the text."""
    with pytest.raises(ValueError, match=r"expected a bucket of a native histogram, as 3p17|invalid literal"):
        Bucket.loads(text)


def of_values(schema: int, values: list[float], threshold: float) -> dict[str, float]:
    """The counts of these observations by the texts of their buckets, as a process of that schema stores them."""
    zero = Native(zero_threshold=threshold).zero_index(schema)
    counts: Counter[str] = Counter()
    for value in values:
        index = None if value != value or not value else index_of(schema, abs(value))
        if value != value:
            bucket = Bucket(schema, NAN)
        elif index is None or (zero is not None and index <= zero):
            bucket = Bucket(schema, "z", zero)
        else:
            bucket = Bucket(schema, "p" if value > 0 else "n", index)
        counts[bucket.dumps()] += 1
    return dict(counts)


VALUES = st.lists(st.floats() | st.sampled_from([0.0, -0.0, 1.0, -2.0, 2.0**-128]), max_size=8)


@given(st.lists(st.tuples(SCHEMA, VALUES, st.sampled_from([0.0, 1e-3, 2.0**-128, 1e300])), min_size=1, max_size=4))
def test_writers_of_any_resolutions_equal_one_of_the_coarsest(writers: list[tuple[int, list[float], float]]) -> None:
    """Folded counts are those of one process with the coarsest schema and the widest zero bucket."""
    schema, widest = min(schema for schema, _, _ in writers), max(threshold for _, _, threshold in writers)
    native = Native(factor=2.0**2.0**-schema, zero_threshold=widest)
    together: Counter[str] = Counter()
    for own, values, threshold in writers:
        together.update(of_values(own, values, threshold))
    one = Folded.of(of_values(schema, [each for _, values, _ in writers for each in values], widest), native)
    assert Folded.of(together, native) == one
    assert one.count == sum(len(values) for _, values, _ in writers)


@settings(max_examples=50)
@given(st.lists(st.tuples(SCHEMA, VALUES, st.sampled_from([0.0, 1e-3])), min_size=1, max_size=4), st.integers(2, 6))
def test_coarser_buckets_are_read_as_the_finer_ones(writers: list[tuple[int, list[float], float]], most: int) -> None:
    """Few enough buckets are left, but in the coarsest schema; they are what is read of all of them in their schema."""
    widest = max(threshold for *_, threshold in writers)
    together: Counter[str] = Counter()
    for own, values, threshold in writers:
        together.update(of_values(own, values, threshold))
    moves, left = coarsened(together, most), Counter[str]()
    for text, count in together.items():
        left[moves.get(text, text)] += count
    found = Folded.of(left, Native(factor=2, zero_threshold=widest))
    assert len(left) <= most or {Bucket.loads(text).schema for text in left if text != NAN} == {SCHEMAS[0]}
    assert len(together) > most or not moves
    assert found == Folded.of(together, Native(factor=2.0**2.0**-found.schema, zero_threshold=widest))


def test_buckets_go_no_further_than_it_takes() -> None:
    """The finest go first, one schema after the other. Buckets of a schema that another one has are read as before."""
    buckets = ["5p1", "5p2", "4p1", "4z", "2p5", "2n5", "nan"]
    assert coarsened(buckets, 7) == {}
    assert coarsened(buckets, 5) == {"5p1": "4p1", "5p2": "4p1"}
    coarse = {"5p1": "-1p1", "5p2": "-1p1", "4p1": "-1p1", "4z": "-1z", "2p5": "-1p1", "2n5": "-1n1"}
    assert coarsened(buckets, 4) == coarse


def test_buckets_of_no_version_stay() -> None:
    """Series with a bound that no version wrote stay as they are, and so do fields with other labels; the rest goes on."""
    coarsening = Coarsening(1)
    coarsening.add(f'_native:{{"a":"1","le":"{bound}"}}' for bound in ("3p1", "3p2", "any"))
    coarsening.add(["_native:{", '_native:["le"]', '_native:{"le":5}', '_bucket:{"le":"3p1"}'])
    coarsening.add(f'_native:{{"le":"{bound}","z":"1"}}' for bound in ("3p1", "3p2"))
    assert {*coarsening.moves()} == {(f'_native:{{"le":"3p{n}","z":"1"}}', '_native:{"le":"2p1","z":"1"}') for n in (1, 2)}


def test_the_declaration_gives_what_no_bucket_says() -> None:
    """A histogram without observations has the declared schema and threshold, raised to a bound of that schema."""
    empty = Folded.of({}, Native(factor=2, zero_threshold=0.3))
    assert (empty.schema, empty.zero_threshold, empty.count) == (0, 0.5, 0)
    assert common(Native(), [Bucket(-1, "z", -2), Bucket(5, "z"), Bucket(3, NAN)]) == (-1, -2)
    assert common(Native(zero_threshold=0), []) == (3, None)

"""The tests that every storage passes of series: their limits, their ends and their times of creation."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import AbstractContextManager, closing

from . import CREATED, UPDATED, Kind, Limits, Operation, Stamped, Storage, updated
from .examples import FIRST, LIMITS, OVER, SECOND, A, adds, batch, created, expect, numbers, own, series, stamps


class SeriesContract:
    """The part of `StorageContract` about series."""

    def make(self) -> Storage:
        """A new storage that holds nothing."""
        raise NotImplementedError(f"{type(self).__name__} needs a method make() that returns a new, empty storage")

    def _made(self) -> AbstractContextManager[Storage]:
        return closing(self.make())

    def test_limit_of_series(self) -> None:
        """New series over the limit count as one, once however often their batch comes; a removal makes room."""
        third, fourth, bucket = (*(series("_total", path=path) for path in "34"), series("_bucket", le="1.0", path="3"))
        native = series("_native", le="3p17", path="3")
        one = batch(1, *adds(FIRST, SECOND, third, fourth, bucket, native), limits=LIMITS)
        with self._made() as store:
            expect(store.apply(batch(1, *adds(FIRST, SECOND, OVER), writer="2-b", limits=LIMITS)).overflowed, {})
            store.delete()
            expect([store.apply(one).overflowed for _ in range(2)], [{"m": 2}, {}])
            expected = {FIRST: "1.0", SECOND: "1.0", OVER: "2.0", series("_bucket", le="1.0", path="over"): "1.0"}
            expected[series("_native", le="3p17", path="over")] = "1.0"
            expect(numbers(store.read()), expected)
            store.apply(batch(2, Operation(Kind.REMOVE, '{"path":"2"}'), *adds(FIRST), limits=LIMITS))
            expect(store.apply(batch(3, *adds(third, FIRST), limits=LIMITS)).overflowed, {})
            del expected[SECOND]
            expect(numbers(store.read()), {**expected, FIRST: "3.0", third: "1.0"})

    def test_limit_of_the_dead(self) -> None:
        """Values of processes are not limited, and the values of the dead are."""
        limits = Limits(1, '{"path":"over"}')
        with self._made() as store:
            values = [each for path in "12" for each in stamps(1.0, "sum", labels=f'{{"path":"{path}"}}')]
            store.apply(batch(1, *values, limits=limits))
            expect(len(own(store.read().metrics["m"])), 2)
            store.apply(batch(2, final=True, limits=limits))
            found = own(store.read().metrics["m"])
            expect((len(found), found['#sum::{"path":"over"}']), (2, 1.0), found)
            ((kept, _),) = found.items() - {('#sum::{"path":"over"}', 1.0)}
            store.apply(batch(3, *stamps(1.0, "sum", labels=kept.removeprefix("#sum::")), final=True, limits=limits))
            expect(own(store.read().metrics["m"])[kept], 2.0)

    def test_idle_series(self) -> None:
        """Series without an update for so long go whole; one of before the limit counts as updated when it is first seen."""
        limits, before = Limits(expire_series=50.0), series("_total", path="before")
        begun = [Operation(Kind.INIT, series("_created", path=path), 5.0) for path in "12"]
        aged = Operation(Kind.STAMP, UPDATED + '{"path":"1"}', Stamped(0.0, time.monotonic() - 60))
        with self._made() as store:
            store.apply(batch(1, *adds(before)))
            store.apply(batch(2, *adds(FIRST, SECOND), *begun, aged, updated('{"path":"2"}'), limits=limits))
            store.apply(batch(3, Operation(Kind.SET, "#sweep", 0.0), limits=limits))
            store.apply(batch(4, limits=limits))
            expect(numbers(store.read()), {SECOND: "1.0", begun[1].field: "5.0", before: "1.0"})

    def test_times_of_creation(self) -> None:
        """Where an update asks for it, a series that begins gets the time, unless it has one or the update gives one."""
        one, two, three, four = (f'{{"path":"{number}"}}' for number in "1234")
        given = Operation(Kind.INIT, CREATED + four, 5.0), Operation(Kind.SET, CREATED + two, 6.0)
        begun = [
            Operation(Kind.INIT, f"_sum:{one}", 0.0),
            *adds('_bucket:{"le":"1.0","path":"3"}', f"_sum:{two}", f"_sum:{four}"),
        ]
        with self._made() as store:
            store.apply(batch(1, *adds(A)))
            expect(created(store), {})
            before = store.read().now
            first = batch(2, *adds(A), *begun, *given, Operation(Kind.SET, '_sum:{"path":"5"}', 1.0), created=True)
            store.apply(first)
            found, now = created(store), store.read().now
            expect((set(found), found[two], found[four]), ({one, two, three, four}, 6.0, 5.0))
            expect(before <= found[one] == found[three] <= now, True, f"{found} between {before} and {now}")
            store.apply(batch(1, Operation(Kind.REMOVE, one), Operation(Kind.DELETE, four), writer="2-b"))
            for again in (first, batch(3, *adds(f"_sum:{two}", f"_bucket:{two}"), created=True)):
                store.apply(again)
            expect(created(store), {two: 6.0, three: found[three]})
            store.apply(batch(4, *begun, created=True))
            now = store.read().now
            expect((set(created(store)), found[one] < created(store)[four] <= now), ({one, two, three, four}, True))

    def test_time_of_creation_of_the_overflow_series(self) -> None:
        """The series for those over the limit gets a time of creation, too."""
        over = OVER.partition(":")[2]
        with self._made() as store:
            store.apply(batch(1, *adds(FIRST), limits=Limits(1, over)))
            store.apply(batch(2, *adds(FIRST, SECOND), limits=Limits(1, over), created=True))
            expect((set(created(store)), created(store)[over] <= store.read().now), ({over}, True))

    def test_native_buckets_of_a_series(self) -> None:
        """Where a series has too many, a search for writers to forget adds the finest to coarser ones, with exemplars."""
        limits, search = Limits(max_buckets=5), Operation(Kind.SET, "#search", 0.0)

        def bucket(text: str, path: str = "1") -> str:
            return series("_native", a=r"\"", le=text, path=path)

        many = {"3p1": "2p1", "3p2": "2p1", "3p3": "2p2", "2p2": "2p2", "3n-5": "2n-2", "3z-1024": "2z-512", "nan": "nan"}
        few = {text: bucket(text, path="2") for text in ("3p1", "3p2", "0p1")}
        exemplars = (Operation(Kind.SET, f"#exemplar{bucket(text)}", text) for text in ("3p1", "2p2", "3p3"))
        first = batch(1, *adds(*map(bucket, many), *few.values()), *exemplars, limits=limits)
        with self._made() as store:
            for one in (first, batch(2, search, limits=limits), batch(3, limits=limits), first):
                store.apply(one)
            expected = {bucket(text): f"{count}.0" for text, count in Counter(many.values()).items()}
            fields = store.read().metrics["m"]
            expect(numbers(store.read()), expected | dict.fromkeys(few.values(), "1.0"))
            shown = {field: value for field, value in fields.items() if field.startswith("#exemplar")}
            expect(shown, {f"#exemplar{bucket(into)}": text for into, text in (("2p1", "3p1"), ("2p2", "2p2"))})
            for one in (batch(4, *adds(bucket("3p1")), search, limits=limits), batch(5, limits=limits)):
                store.apply(one)
            expect(numbers(store.read())[bucket("2p1")], "3.0", "after a late observation in a fine bucket")

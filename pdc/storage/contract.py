"""The tests that every storage passes."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import reduce
from itertools import product
from operator import add
from typing import NoReturn

from . import (
    FINAL_MARK_SECONDS,
    FOLDED,
    FORGET_VALUES_SECONDS,
    FORGET_WRITER_SECONDS,
    META,
    Batch,
    Kind,
    Operation,
    Stamped,
    StorageError,
    Update,
)
from .examples import (
    EVERY_KIND,
    SPECIAL,
    A,
    B,
    adds,
    batch,
    expect,
    grow_old,
    marks,
    numbers,
    own,
    series,
    sets,
    stamps,
    update,
)
from .series_contract import SeriesContract

__all__ = ["StorageContract"]

MANY = 10_000
"""More fields than a call of some drivers can take."""
FORK_SECONDS = 30.0
"""The longest time that a child of a fork may take."""


class StorageContract(SeriesContract):
    """The tests of a storage for pytest and unittest; a subclass has a `make` that returns a new and empty one.

    class TestMine(StorageContract):
        def make(self):
            return MyStorage()

    Each test makes one storage and closes it. They call only the methods of `Storage`.
    """

    def test_operations(self) -> None:
        """Every kind of operation does what `Kind` states, in that order, and once however often applied."""
        with self._made() as store:
            for number, (case, (batches, expected)) in enumerate(EVERY_KIND.items()):
                name = f"m{number}"
                for sequence, operations in enumerate(batches, 1):
                    outcomes = [store.apply(batch(sequence, *operations, name=name)) for _ in range(2)]
                    expect([each.unknown for each in outcomes], [{name} if sequence == 1 else set(), set()], case)
                    expect([each.refused for each in outcomes], [{}, {}], case)
                expect(numbers(store.read(), name), expected, case)
                expect(numbers(store.read([name, "missing"]), name), expected, case)

    def test_late_duplicate(self) -> None:
        """A batch that comes again after later ones, of its writer and of others, is not applied again."""
        first = batch(1, *adds(A), Operation(Kind.DELETE, "{}"))
        with self._made() as store:
            for one in (first, batch(2, *adds(A))):
                store.apply(one)
            outcomes = [store.apply(one).unknown for one in (batch(1, *adds(A), writer="2-b"), first)]
            expect((numbers(store.read()), outcomes), ({A: "3.0"}, [{"m"}, set()]))

    def test_sums_of_ieee_doubles(self) -> None:
        """Additions give bit for bit the result of Python, and a set value comes back unchanged."""
        with self._made() as store:
            for case, values in enumerate(SPECIAL):
                for sequence, value in enumerate(values, 1):
                    operations = Operation(Kind.ADD, A, value), Operation(Kind.SET, B, value)
                    store.apply(batch(sequence, *operations, name=f"m{case}"))
                expect(numbers(store.read(), f"m{case}"), {A: repr(reduce(add, values, 0.0)), B: repr(values[-1])}, values)

    def test_texts_come_back(self) -> None:
        """A field may hold any text, and may have any labels."""
        text, field = 'a "quoted" \\ \n é 🎉 \x00 12', series("_info", é='a{"b":1}')
        with self._made() as store:
            store.apply(batch(1, Operation(Kind.SET, field, text)))
            expect(store.read().metrics["m"][field], text)
            store.apply(batch(2, Operation(Kind.DELETE, json.dumps({"é": 'a{"b":1}'}))))
            expect(field in store.read().metrics["m"], False)

    def test_times_of_stamps(self) -> None:
        """A stamp keeps the number, and the time of its set by the storage's clock; 0 for never."""
        set_at = time.monotonic() - 100
        operations = [
            Operation(Kind.STAMP, "#sum:1-a:{}", Stamped(-1.5, set_at)),
            Operation(Kind.STAMP, "#sum:2-b:{}", Stamped(math.inf, None)),
        ]
        with self._made() as store:
            store.apply(batch(1, *operations))
            now, metrics = store.read()
            age = time.monotonic() - set_at
            number, _, stamp = metrics["m"]["#sum:1-a:{}"].partition(" ")
            expect((float(number), 99.9 <= now - float(stamp) <= age + 1), (-1.5, True), f"the stamp {stamp} read at {now}")
            expect([float(part) for part in metrics["m"]["#sum:2-b:{}"].split(" ")], [math.inf, 0.0])

    def test_values_of_a_writer_that_deregisters(self) -> None:
        """Live values of a writer that deregisters go, others are folded into those of the dead; totals stay."""
        modes = ("live", *FOLDED)
        with self._made() as store:
            for writer, number, age in (("1-a", 3.0, 10.0), ("2-b", 5.0, 30.0), ("3-c", 4.0, 20.0)):
                store.apply(batch(1, *stamps(number, *modes, writer=writer, age=age), *adds(A), writer=writer))
            store.apply(batch(2, *adds(A), writer="1-a", final=True))
            store.apply(batch(2, writer="2-b", final=True))
            dead = {"#sum::{}": 8.0, "#min::{}": 3.0, "#max::{}": 5.0, "#mostrecent::{}": 3.0}
            fields = store.read().metrics["m"]
            expect(own(fields), dead | {f"#{mode}:3-c:{{}}": 4.0 for mode in modes})
            expect(float(fields[A]), 4.0)

    def test_marks_of_deregistered_writers(self) -> None:
        """The mark of a writer that deregisters stays for `FINAL_MARK_SECONDS`: a duplicate of its batches counts nothing."""
        first = batch(1, *adds(A))
        with self._made() as store:
            store.apply(batch(1, final=True))
            expect(store.read().metrics, {}, "a writer that deregisters makes no metric")
            for one in (first, batch(2, final=True), first, batch(1, writer="2-b")):
                store.apply(one)
            expect(numbers(store.read()), {A: "1.0"})
            now, mark = store.read().now, marks(store)["1-a"]
            expect([mark.is_forgotten(now + late) for late in (-5.0, FINAL_MARK_SECONDS + 5)], [False, True], mark)

    def test_values_are_folded_once(self) -> None:
        """A duplicate batch of a deregistered writer neither folds a value again nor restores it."""
        first, second = batch(1, *stamps(3.0, "sum", "live")), batch(2, *stamps(4.0, "sum", "live"))
        last = batch(3, *stamps(5.0, "sum", "live"), final=True)
        with self._made() as store:
            for one in (first, second, first, last, last, second, first, last):
                store.apply(one)
            expect(own(store.read().metrics["m"]), {"#sum::{}": 5.0})

    def test_late_deregistration(self) -> None:
        """The deregistration of a writer that has since written again is a duplicate like others."""
        goodbye = batch(2, final=True)
        with self._made() as store:
            for one in (batch(1, *stamps(3.0, "live")), goodbye, batch(3, *stamps(4.0, "live")), goodbye):
                store.apply(one)
            expect(own(store.read().metrics["m"]), {"#live:1-a:{}": 4.0})

    def test_values_of_several_series(self) -> None:
        """Each series has its own value of the dead, which its removal also removes."""
        with self._made() as store:
            for writer in ("1-a", "2-b"):
                for sequence, labels in enumerate(('{"path":"/"}', '{"path":"a:b"}'), 1):
                    store.apply(batch(sequence, *stamps(0.5, "sum", writer=writer, labels=labels), writer=writer))
                store.apply(batch(3, writer=writer, final=True))
            expect(own(store.read().metrics["m"]), {'#sum::{"path":"/"}': 1.0, '#sum::{"path":"a:b"}': 1.0})
            store.apply(batch(4, Operation(Kind.DELETE, '{"path":"/"}')))
            expect(own(store.read().metrics["m"]), {'#sum::{"path":"a:b"}': 1.0})

    def test_the_dead_are_merged_as_the_living(self) -> None:
        """Folded numbers are bit for bit those that prometheus_client merges of the same processes."""
        pairs = list(product([math.nan, -math.inf, 0.1, -0.0], [math.nan, math.inf, 0.2, 1e-20]))
        with self._made() as store:
            for case, pair in enumerate(pairs):
                for sequence, (value, writer) in enumerate(zip(pair, ("1-a", "2-b"), strict=True)):
                    values = stamps(value, *FOLDED, writer=writer, age=10.0 - sequence)
                    store.apply(batch(2 * case + 1, *values, writer=writer, name=f"m{case}"))
                    store.apply(batch(2 * case + 2, writer=writer, name=f"m{case}", final=True))
            found = store.read().metrics
        for case, (dead, last) in enumerate(pairs):
            smallest, largest = last if last < dead else dead, last if last > dead else dead
            expected = {"#sum::{}": dead + last, "#min::{}": smallest, "#max::{}": largest, "#mostrecent::{}": last}
            expect(repr(sorted(own(found[f"m{case}"]).items())), repr(sorted(expected.items())), (dead, last))

    def test_values_of_all_processes(self) -> None:
        """A value of the mode ``all`` stays until its writer was not seen for `FORGET_VALUES_SECONDS`."""
        values = {"#all:1-a:{}": 3.0, "#all:2-b:{}": 3.0}
        with self._made() as store:
            for writer in ("1-a", "2-b"):
                store.apply(batch(1, *stamps(3.0, "all", writer=writer), writer=writer))
            for _ in range(2):
                store.apply(batch(2, final=True))
            for age, expected in ((FORGET_VALUES_SECONDS - 60, values), (FORGET_VALUES_SECONDS + 60, {})):
                grow_old(store, dict.fromkeys(("1-a", "2-b"), age))
                expect(own(store.read().metrics["m"]), expected, f"{age:g} s after the writers were seen")
            expect(set(marks(store)), {"9-z"})

    def test_writers_are_forgotten(self) -> None:
        """Writers that were not seen for long go with their marks, live values at once, others are folded a day later."""
        with self._made() as store:
            store.apply(batch(1, *stamps(1.0, "live"), *adds(A)))
            store.apply(batch(1, *stamps(1.0, "live", "sum", writer="2-b"), writer="2-b"))
            grow_old(store, dict.fromkeys(("1-a", "2-b"), FORGET_WRITER_SECONDS + 60))
            expect(own(store.read().metrics["m"]), {"#live:2-b:{}": 1.0, "#sum:2-b:{}": 1.0})
            expect(set(marks(store)), {"2-b", "9-z"})
            grow_old(store, {"2-b": FORGET_VALUES_SECONDS + 60})
            expect(own(store.read().metrics["m"]), {"#sum::{}": 1.0})
            expect(numbers(store.read()), {A: "1.0"})

    def test_damaged_bookkeeping(self) -> None:
        """Foreign data in the fields of pdc's own neither stops batches nor harms the marks of others."""
        damaged = [("1-a", "#mark:1-a"), ("1-a", "#search"), ("2-b", "#mark:2-b"), ("3-c", "#sum:3-c:{}"), ("4-d", "#sum::{}")]
        with self._made() as store:
            for sequence, (writer, field) in enumerate(damaged):
                store.apply(batch(2 * sequence + 1, *stamps(3.0, "sum", writer=writer), *adds(A), writer=writer))
                store.apply(batch(2 * sequence + 2, Operation(Kind.SET, field, "any"), writer=writer))
            store.apply(batch(99, *adds(A), writer="5-e"))
            expect(float(store.read().metrics["m"][A]), len(damaged) + 1.0)
            known = [writer for writer in marks(store) if writer != "5-e"]
            grow_old(store, dict.fromkeys(known, FORGET_VALUES_SECONDS + 60))
            expect(set(marks(store)), {"5-e", "9-z"})
            expect(set(own(store.read().metrics["m"])), {"#sum::{}"})

    def test_the_last_declaration(self) -> None:
        """The metadata is stored where it is missing, and replaced by each declaration, which reports those before."""
        with self._made() as store:
            for number, declare, expected, before in ((1, False, "1", {}), (2, False, "1", {}), (3, True, "3", {"m": "1"})):
                outcome = store.apply(Batch("1-a", number, [Update("m", str(number), [], declare)]))
                expect((store.read().metrics["m"][META], outcome.replaced), (expected, before))

    def test_huge_batch(self) -> None:
        """A batch of very many fields is applied at once, twice, and deleted at once."""
        operations = [Operation(Kind.ADD, series("_total", path=str(number)), float(number)) for number in range(MANY)]
        with self._made() as store:
            for sequence in (1, 2):
                store.apply(batch(sequence, *operations))
            expect(numbers(store.read()) == {each.field: repr(2.0 * index) for index, each in enumerate(operations)}, True)
            store.apply(batch(3, Operation(Kind.DELETE, "{}")))
            expect(numbers(store.read()), {})

    def test_reads_and_deletions(self) -> None:
        """A read gives the requested metrics that exist; after `delete` and `close` the storage begins again."""
        names = ("one", "two", "three_")
        with self._made() as store:
            expect(store.read().metrics, {})
            store.apply(Batch("1-a", 1, [update(*adds(A), name=name) for name in names]))
            found = [set(store.read(wanted).metrics) for wanted in (None, ["one", "four"], [], {"two"})]
            expect(found, [set(names), {"one"}, set(), {"two"}])
            store.delete()
            expect((store.read().metrics, store.read(["one"]).metrics), ({}, {}))
            store.close()
            expect(store.apply(batch(1, *adds(A))).unknown, {"m"})
            expect(numbers(store.read()), {A: "1.0"})

    def test_deletion_of_some_metrics(self) -> None:
        """`delete` with names leaves all others, and the id of the storage; a deleted metric begins again."""
        with self._made() as store:
            store.apply(Batch("1-a", 1, [update(*adds(A), name=name) for name in ("one", "two", "three_")]))
            before = store.id()
            store.delete({"one", "three_", "four"})
            expect((set(store.read().metrics), store.id()), ({"two"}, before))
            outcome = store.apply(Batch("1-a", 2, [update(*adds(A), name=name) for name in ("one", "two")]))
            expect(outcome.unknown, {"one"})
            expect([numbers(store.read(), name) for name in ("one", "two")], [{A: "1.0"}, {A: "2.0"}])

    def test_ids(self) -> None:
        """The first write gives the storage its id, that of the batch where it has one; no read does. A deletion takes it."""
        with self._made() as store:
            store.read()
            expect(store.id(), "")
            given = "#id:" + 28 * "a"
            for number, letter in ((1, "a"), (2, "b")):
                outcome = store.apply(batch(number, *adds(A))._replace(storage="#id:" + 28 * letter))
                expect(outcome.storage in ("", given), True, outcome)
            expect((store.id(), set(store.read().metrics)), (given, {"m"}))
            store.delete()
            expect(store.id(), "")
            store.apply(batch(3, *adds(A)))
            expect((store.id()[:4], len(store.id()), store.id() == given), ("#id:", 32, False))

    def test_identity_and_places(self) -> None:
        """The identity is a text that stays the same, or None; its places are texts, one at least."""
        with self._made() as store:
            before, places = store.identity, [*store.places()]
            is_sound = before is None or (isinstance(before, str) and before and places)
            expect(bool(is_sound) and {*map(type, places)} <= {str}, True, f"identity {before!r} in places {places}")
            store.apply(batch(1, *adds(A)))
            expect((store.identity, [*store.places()]), (before, places))

    def test_snapshots_stay(self) -> None:
        """A snapshot does not change with later batches."""
        with self._made() as store:
            store.apply(batch(1, *adds(A)))
            before = store.read()
            store.apply(batch(2, *adds(A, B)))
            expect(numbers(before), {A: "1.0"})

    def test_deadlines(self) -> None:
        """A call before its deadline works, one after it works or raises StorageError, and `math.inf` ends the deadline."""
        with self._made() as store:
            for sequence, deadline in enumerate((60, -1, math.inf), 1):
                store.set_deadline(time.monotonic() + deadline)
                with suppress(StorageError) if deadline < 0 else nullcontext():
                    store.apply(batch(min(sequence, 2), *adds(A)))
            expect(numbers(store.read()), {A: "2.0"})

    def test_removals_without_a_mark(self) -> None:
        """`remove` takes series as a batch does, and leaves no sign of its writer."""
        with self._made() as store:
            store.apply(batch(1, *sets(A, B)))
            before = dict(store.read().metrics["m"])
            store.remove(Batch("2-b", 1, [update(Operation(Kind.DELETE, '{"path":"/b"}'))]))
            del before[B]
            expect(dict(store.read().metrics["m"]), before)

    def test_threads(self) -> None:
        """Several threads may use a storage at once, while another one closes it again and again."""
        failed: list[Exception] = []
        with self._made() as store:

            def work(writer: str) -> None:
                try:
                    for sequence in range(1, 6):
                        store.apply(batch(sequence, *adds(A), writer=writer))
                        store.read()
                except Exception as error:  # noqa: BLE001 - the test reports it
                    failed.append(error)

            threads = [threading.Thread(target=work, args=(f"{number}-t",)) for number in range(4)]
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                store.close()
                time.sleep(0.001)
            expect((failed, numbers(store.read())), ([], {A: "20.0"}))

    def test_forks(self) -> None:
        """A child of a fork and its parent may use the storage at once, and share it where it has an identity."""
        with self._made() as store:
            store.apply(batch(1, *adds(A)))
            is_shared = store.identity is not None and hasattr(os, "fork")

            def count(writer: str) -> bool:
                try:
                    for sequence in range(2, 12):
                        store.apply(batch(sequence, *adds(A), writer=writer))
                except StorageError:
                    return not is_shared
                return True

            child = _fork(lambda: count("2-b"))
            count("1-a")
            expect(_exit_code(child), 0, "exit code of the child")
            expect(numbers(store.read()), {A: "21.0" if is_shared else "11.0"})


def _fork(work: Callable[[], bool]) -> int:
    """Do that in a child of this process, and return its id; 0 where the system has no children."""
    if not hasattr(os, "fork"):
        return 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of a fork amid threads, which programs do all the same
        child = os.fork()
    if not child:
        _do_and_exit(work)
    return child


def _exit_code(child: int) -> int:
    """Wait for the end of the child, for some time."""
    if not child:
        return 0
    until = time.monotonic() + FORK_SECONDS
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(ended[1])


def _do_and_exit(work: Callable[[], bool]) -> NoReturn:
    try:
        code = 0 if work() else 1
    except BaseException:  # noqa: BLE001 - the child may not go on with the tests of its parent
        traceback.print_exc()
        code = 2
    os._exit(code)

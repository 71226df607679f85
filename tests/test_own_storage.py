"""A storage of an application: faults of one are reported and harm nothing, and the tests of the contract find each of them."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from helpers import Run

import pdc
from pdc import config
from pdc.exposition import Scrape
from pdc.storage import Batch, ForkSafe, Outcome, Snapshot, Storage, StorageError, new_id
from pdc.storage.fields import Fields
from pdc.testing import StorageContract, value_of


class Memory(ForkSafe):
    """A right one, in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.known = ""
        self.metrics: dict[str, Fields] = {}

    @property
    def identity(self) -> str | None:
        """No other process can use it."""
        return None

    def places(self) -> Sequence[str]:
        """No other process can use it."""
        return []

    def id(self) -> str:
        """The id of the first write."""
        return self.known

    def apply(self, batch: Batch) -> Outcome:
        """Apply the batch."""
        outcome = Outcome(set(), {}, {}, {})
        with self.lock:
            self.known = self.known or batch.storage or new_id()
            for update in batch.updates:
                self.metrics.setdefault(update.name, Fields()).apply(batch, update, outcome)
            self.metrics = {name: fields for name, fields in self.metrics.items() if fields}
        return outcome._replace(storage=self.known)

    def read(self, names: Collection[str] | None = None) -> Snapshot:
        """Copy the metrics."""
        with self.lock:
            chosen = self.metrics if names is None else self.metrics.keys() & set(names)
            return Snapshot(time.time(), {name: dict(self.metrics[name]) for name in chosen})

    def remove(self, batch: Batch) -> None:
        """Remove series."""
        with self.lock:
            for update in batch.updates:
                self.metrics.get(update.name, Fields()).remove(update)

    def delete(self, names: Collection[str] | None = None) -> None:
        """Delete metrics."""
        with self.lock:
            if names is None:
                self.known, self.metrics = "", {}
            for name in names or ():
                self.metrics.pop(name, None)

    def close(self) -> None:
        """Nothing is open."""


class TestMemory(StorageContract):
    """The right one passes."""

    def make(self) -> Storage:
        """An empty one."""
        return Memory()


def stop(*_: Any) -> None:
    """Raise an error that no storage should raise."""
    raise RuntimeError("no such thing")


def broken(**members: Any) -> Memory:
    """A storage with other members."""
    return cast("Memory", type("Broken", (Memory,), members)())


def dies_at_a_deadline(store: Memory, batch: Batch) -> Outcome:
    """Apply, unless there ever was a deadline."""
    if hasattr(store, "dead"):
        raise StorageError("it is too late")
    return Memory.apply(store, batch)


FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "no names of places": ("identity_and_places", {"places": lambda _: None}),
    "a name without a place": ("identity_and_places", {"identity": "mine"}),
    "an identity that is no property": ("identity_and_places", {"identity": lambda _: "mine"}),
    "another identity each time": ("identity_and_places", {"identity": property(lambda _: str(time.perf_counter()))}),
    "set_deadline raises": ("deadlines", {"set_deadline": stop}),
    "a deadline stays": (
        "deadlines",
        {"set_deadline": lambda store, _: setattr(store, "dead", True), "apply": dies_at_a_deadline},
    ),
    "snapshots change": ("snapshots_stay", {"read": lambda store, _=None: Snapshot(time.time(), dict(store.metrics))}),
    "another id": ("ids", {"apply": lambda store, batch: Memory.apply(store, batch)._replace(storage=new_id())}),
    "an id of a read": ("ids", {"id": lambda store: store.known or new_id()}),
    "no outcome": ("ids", {"apply": lambda store, batch: [Memory.apply(store, batch)].clear()}),
    "names must be a list": ("reads_and_deletions", {"read": lambda store, names=None: Memory.read(store, names and names[:])}),
    "one update of a batch": (
        "reads_and_deletions",
        {"apply": lambda store, batch: Memory.apply(store, batch._replace(updates=batch.updates[:1]))},
    ),
    "removals leave marks": ("removals_without_a_mark", {"remove": Memory.apply}),
    "the wrong clock": ("times_of_stamps", {"read": lambda store, names=None: Memory.read(store, names)._replace(now=0.0)}),
    "duplicates count": (
        "late_duplicate",
        {"apply": lambda store, batch: Memory.apply(store, batch._replace(sequence=time.monotonic_ns()))},
    ),
    "deregistrations are lost": (
        "values_of_a_writer_that_deregisters",
        {"apply": lambda store, batch: Memory.apply(store, batch._replace(final=False))},
    ),
    "no limit": (
        "limit_of_series",
        {
            "apply": lambda store, batch: Memory.apply(
                store,
                batch._replace(updates=[each._replace(limits=each.limits._replace(max_series=0)) for each in batch.updates]),
            )
        },
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_contract_finds_a_broken_promise(fault: str) -> None:
    """A storage with one fault fails the test of what it breaks."""
    name, members = FAULTS[fault]
    contract = StorageContract()
    contract.make = lambda: broken(**members)  # type: ignore[method-assign] # a test of a subclass would run by itself
    with pytest.raises((AssertionError, AttributeError, RuntimeError, StorageError, TypeError)):
        getattr(contract, f"test_{name}")()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"apply": None}, "which has no apply$"),
        ({"identity": lambda _: "mine"}, "the identity of a storage must be a text or None, got .*: make it a @property"),
        ({"identity": 5}, "the identity of a storage must be a text or None, got 5: return the name of the storage"),
    ],
)
def test_a_storage_that_lacks_a_part_is_refused(members: dict[str, Any], message: str) -> None:
    """The error names the part and the remedy, before anything is counted."""
    with pytest.raises(TypeError, match=message):
        pdc.setup(storage=broken(**members))


def test_a_subclass_of_the_contract_must_have_all_of_it() -> None:
    """Members that it inherits from `Storage` do nothing, so they count as missing."""
    part: Any = type("Part", (Storage,), {name: getattr(Memory, name) for name in ("identity", "apply", "read", "places")})
    with pytest.raises(TypeError, match=r"which has no id, remove, delete, set_deadline, close$"):
        pdc.setup(storage=part())


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"apply": lambda *_: None}, r"TypeError: apply\(\) must return a pdc.storage.Outcome, got None"),
        ({"apply": stop}, "RuntimeError: no such thing"),
        ({"read": lambda *_: {}}, r"TypeError: read\(\) must return a pdc.storage.Snapshot, got a dict"),
        ({"read": stop}, "RuntimeError: no such thing"),
    ],
)
def test_wrong_answers_of_a_storage_break_no_update(
    members: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An update returns, a scrape is a 503 with the reason, and the log has it."""
    pdc.setup(storage=broken(**members))
    pdc.Counter("orders", "Orders.", registry=None).inc()
    answer = Scrape().answer()
    assert answer.status == 503
    assert re.search(reason, answer.body.decode())
    assert "nobody foresaw" in caplog.text


def test_a_storage_that_fails_at_its_end_keeps_no_other_from_its_own(caplog: pytest.LogCaptureFixture) -> None:
    """`setup` and `shutdown` go on after errors of `close` and `set_deadline`, which are logged."""
    first, second = broken(close=stop), broken(close=stop, set_deadline=lambda _, at: None if at == math.inf else stop())
    pdc.setup(storage=first, flush_interval=60)
    pdc.Counter("orders", "Orders.", registry=None).inc()
    pdc.setup(storage=second, flush_interval=60)
    pdc.Counter("orders", "Orders.", registry=None).inc()
    pdc.shutdown()
    assert config.DEFAULT.storage is None
    assert [store.metrics["orders"]["_total:{}"] for store in (first, second)] == [1.0, 1.0]
    assert "RuntimeError: no such thing" in caplog.text


def test_a_process_ends_in_time_whatever_its_storage_does(run_script: Run) -> None:
    """A storage that never answers, and one that raises at the end, hold up no process, and nothing goes to standard error."""
    source = """
        import sys, time
        sys.path.insert(0, sys.argv[1])
        from test_own_storage import Memory, broken, stop
        store = broken(apply=lambda *_: time.sleep(60), close=stop, set_deadline=lambda *_: None)
        pdc.setup(storage=store, flush_interval=0.01, exit_timeout=0.2)
        pdc.Counter("orders", "Orders.").inc()
        time.sleep(0.1)
    """
    began = time.monotonic()
    assert "Exception ignored" not in run_script(source, Path(__file__).parent).stderr
    assert time.monotonic() - began < 20


def test_a_storage_may_be_used_again() -> None:
    """The object of before a `shutdown` counts on after another `setup`, which ends its deadline."""
    store = Memory()
    for expected in (1.0, 2.0):
        pdc.setup(storage=store)
        assert store.deadline == math.inf
        pdc.Counter("orders", "Orders.", registry=None).inc()
        assert value_of("orders_total") == expected
        pdc.shutdown()
        assert store.deadline < math.inf


@dataclass
class Equal(Memory):
    """A storage that is a dataclass: it has no hash, and is equal to others."""

    name: str = "shop"
    closed: list[str] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        super().__init__()

    def close(self) -> None:
        """Note that."""
        self.closed.append(self.name)


def test_storages_may_be_equal_and_have_no_hash() -> None:
    """Each object is a storage of its own, which is closed when another one takes its place."""
    first, second = Equal(), Equal()
    with suppress(TypeError):
        hash(first)
        raise AssertionError("expected no hash")
    for store in (first, second):
        pdc.setup(storage=store)
        pdc.Counter("orders", "Orders.", registry=None).inc()
        pdc.flush()
    assert (first.closed, second.closed) == (["shop"], [])
    assert store.metrics["orders"]["_total:{}"] == 1.0


def test_a_prefix_of_a_storage_is_its_own_matter() -> None:
    """Only that of Redis is shown as `redis_prefix`."""
    store = broken(prefix="mine", __str__=lambda _: "memory")
    assert config.described(store) == "memory"

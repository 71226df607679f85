"""Room and traffic of metrics in Redis, in counts that do not depend on the machine: ``python -m benchmarks.sizing``."""

from __future__ import annotations

import argparse
import os
import struct
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry, disable_created_metrics, enable_created_metrics
from redis import Redis

import pdc
from benchmarks import report
from benchmarks.contenders.libraries import BOUNDS, LABELS, LIBRARIES
from benchmarks.contenders.series import SIZES
from benchmarks.contenders.writers import Crowd
from benchmarks.redis_server import RedisServer
from pdc.delivery import Buffer
from pdc.storage import Batch, Limits, Operation, Update
from pdc.storage import Kind as Does
from pdc.storage.redis import RedisStorage

Kind = tuple[str, Callable[..., Any], Callable[[Any], None]]
"""Its title, its class with arguments, and an update of a child."""


def _observe_all(child: Any) -> None:
    for bound in (*BOUNDS, 11.0):
        child.observe(bound)


REPEATS = 5
"""Of the work of a crowd; the cheapest counts, since other programs only add to it."""
NUMBERS = count()
"""Of the metrics, so that none has the name of another one."""
KINDS: list[Kind] = [
    ("counter", pdc.Counter, lambda child: child.inc()),
    ("gauge", pdc.Gauge, lambda child: child.set(1.5)),
    ("gauge, `livesum`, a process", partial(pdc.Gauge, multiprocess_mode="livesum"), lambda child: child.set(1.5)),
    ("summary", pdc.Summary, lambda child: child.observe(1.5)),
    ("histogram, 1 of 15 buckets used", partial(pdc.Histogram, buckets=BOUNDS), lambda child: child.observe(1.5)),
    ("histogram, all 15 used", partial(pdc.Histogram, buckets=BOUNDS), _observe_all),
]
NUMBERS_OF: dict[str, Callable[[Random], float]] = {
    "around 50 ms": lambda dice: 0.05 * dice.lognormvariate(0, 1),
    "around 0.1 ms, 50 ms and 30 s": lambda dice: dice.choice((1e-4, 0.05, 30)) * dice.lognormvariate(0, 1),
    "from 1 µs to 1 h": lambda dice: 10 ** dice.uniform(-6, 3.556),
    "any doubles": lambda dice: float(*struct.unpack("d", dice.randbytes(8))),
}
"""Numbers that processes observe in native histograms."""


class Account:
    """A Redis with the metrics of this process, and its own account of its work."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client: Any = Redis.from_url(url)

    def open(self) -> None:
        """Begin with an empty database."""
        self.client.flushdb()
        pdc.setup(redis=self.url, redis_prefix="shop", flush_interval=3600, journal=False)

    def fields(self, name: str) -> int:
        """The fields of a metric that belong to its series."""
        names = self.client.hkeys(f"prometheus_shop_{name}")
        return sum(not each.startswith(b"#") or each.startswith(b"#live") for each in names)

    def room(self, name: str) -> int:
        """The bytes of a metric, by Redis's own account."""
        return int(self.client.execute_command("MEMORY", "USAGE", f"prometheus_shop_{name}", "SAMPLES", 0))

    def work(self, times: int, work: Callable[[], object]) -> dict[str, float]:
        """The calls, bytes of the network and seconds of the processor that Redis spends on each of so many repetitions."""
        self.client.config_resetstat()
        before = self._spent()
        for _ in range(times):
            work()
        after = self._spent()
        stats = self.client.info("commandstats")
        calls = sum(stats[name]["calls"] for name in ("cmdstat_evalsha", "cmdstat_exists") if name in stats)
        return {"calls": calls / times, **{name: (after[name] - before[name]) / times for name in before}}

    def _spent(self) -> dict[str, float]:
        info = {**self.client.info("stats"), **self.client.info("cpu")}
        processor = info["used_cpu_user"] + info["used_cpu_sys"]
        received, sent = info["total_net_input_bytes"], info["total_net_output_bytes"]
        return {"received": received, "sent": sent, "traffic": received + sent, "processor": processor}


def opened_metric(account: Account, kind: Kind) -> tuple[str, Any]:
    """A new metric of that kind in an empty database, and its name."""
    account.open()
    name = f"events{next(NUMBERS)}"
    return name, kind[1](name, "Events so far.", LABELS, registry=CollectorRegistry())


def update_series(metric: Any, series: range, update: Callable[[Any], None]) -> None:
    """Update these series, and send the batches."""
    for number in series:
        update(metric.labels("GET", f"/items/{number:05}", "200"))
    pdc.flush()


def rooms(account: Account, number: int) -> Iterator[tuple[str, ...]]:
    """For each kind: fields, bytes in Redis, bytes of its scrape from Redis, and bytes of the page, of a series."""
    for kind in KINDS:
        name, metric = opened_metric(account, kind)
        found = []
        for series in (range(number // 5), range(number // 5, number)):  # the first ones pay for the metric
            update_series(metric, series, kind[2])
            scrape = account.work(1, pdc.generate_latest)
            found.append((account.fields(name), account.room(name), scrape["traffic"], len(pdc.generate_latest())))
        yield kind[0], *(f"{(last - first) / len(series):.0f}" for first, last in zip(*found, strict=True))


def room_of_a_writer(account: Account, number: int) -> float:
    """The bytes of a process in a metric: its mark, of which the hash gets so many under other names."""
    name, metric = opened_metric(account, KINDS[0])
    update_series(metric, range(1), KINDS[0][2])
    key, before = f"prometheus_shop_{name}", account.room(name)
    (mark,) = (field for field in account.client.hkeys(key) if field.startswith(b"#mark:"))
    value = account.client.hget(key, mark)
    account.client.hset(key, mapping={mark[:-8] + f"{each:08x}".encode(): value for each in range(number)})
    return (account.room(name) - before) / number


def batches(account: Account, times: int) -> Iterator[tuple[str, ...]]:
    """For each number of changed series: calls, bytes and processor time of a batch, the latter in parts of a SET."""
    unit = account.work(20 * times, lambda: account.client.set("unit", "1"))["processor"]
    for kind in (KINDS[0], KINDS[4]):
        for number in (1, 10, 100, 1000):
            _, metric = opened_metric(account, kind)
            update = partial(update_series, metric, range(number), kind[2])
            update()
            found = account.work(times, update)
            sizes = [f"{found[size] / 1000:.1f}" for size in ("received", "sent")]
            yield kind[0], str(number), f"{found['calls']:.0f}", *sizes, f"{found['processor'] / unit:.0f}"


def crowds(account: Account, writers: Iterable[int], times: int) -> Iterator[tuple[str, ...]]:
    """For writers of the metrics of requests that each send a batch a second: the work and the memory of Redis."""
    os.environ["REDIS_URL"] = account.url
    for number in writers:
        for routes in (1, 20, 100):
            account.client.flushdb()
            crowd = Crowd(LIBRARIES["pdc_redis"](), number, routes)
            crowd.write(number)
            works = [account.work(1, partial(crowd.write, times)) for _ in range(REPEATS)]
            load, network = (min(each[what] for each in works) * number / times for what in ("processor", "traffic"))
            yield f"{number:,}", str(routes), f"{load:.1%}", f"{network / 1e6:.2f}", f"{SIZES['redis']() / 1e6:.2f}"


class Observer:
    """A process with a native histogram of its own, but for its memory."""

    def __init__(self, storage: RedisStorage, name: str, number: int) -> None:
        self.buffer = Buffer()
        cls = type("Histogram", (pdc.Histogram,), {"buffer": self.buffer})
        self._metric = cls(name, "Numbers.", buckets=(), native=True, registry=None)
        self.buffer.attach(storage, 3600.0, None, thread=threading.get_ident())
        self._dice = Random(number)

    def observe(self, times: int, number: Callable[[Random], float]) -> None:
        """Observe so many numbers, and send them."""
        for _ in range(times):
            self._metric.observe(number(self._dice))
        self.buffer.flush()


def natives(account: Account, processes: Iterable[int], times: int) -> Iterator[tuple[str, ...]]:
    """For numbers of each kind: the native buckets of a series, after a search, and once all processes have gone on."""
    for kind, draw in NUMBERS_OF.items():
        for number in processes:
            account.client.flushdb()
            storage, found = RedisStorage(account.url, "shop"), []
            observers = [Observer(storage, "numbers", each) for each in range(number)]
            for searches in (False, True):
                for each in observers:
                    each.observe(times, draw)
                found.append(_buckets(account))
                if not searches:
                    _search(storage)
                    found.append(_buckets(account))
            yield kind, str(number), *map(str, found)
            for each in observers:
                each.buffer.detach()
            storage.close()


def _buckets(account: Account) -> int:
    """The native buckets in the storage."""
    return sum(field.startswith(b"_native:") for field in account.client.hkeys("prometheus_shop_numbers"))


def _search(storage: RedisStorage) -> None:
    """Let the storage search the metric for writers to forget."""
    limits = Limits(max_buckets=pdc.Native().most_stored)
    for sequence, operations in enumerate(([Operation(Does.SET, "#search", 0.0)], [])):
        storage.apply(Batch("0-search", sequence, [Update("numbers", "{}", operations, limits=limits)]))


def say_table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print rows below their titles."""
    report.say("\n".join([*report.aligned([titles, *rows]), ""]))


@contextmanager
def opened() -> Iterator[Account]:
    """A Redis for one run."""
    with tempfile.TemporaryDirectory(prefix="pdc-sizing-") as folder, RedisServer(Path(folder)) as server:
        yield Account(server.new_database())
        pdc.shutdown()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sizing", description=__doc__)
    parser.add_argument("--series", type=int, default=10_000, metavar="N", help="of each metric (10,000)")
    parser.add_argument("--batches", type=int, default=200, metavar="N", help="of each size (200)")
    parser.add_argument("--writers", type=int, nargs="+", metavar="N", help="only the load of so many processes")
    parser.add_argument(
        "--native", type=int, nargs="+", metavar="N", help="only the buckets of native histograms of so many processes"
    )
    parser.add_argument("--observations", type=int, default=5_000, metavar="N", help="of each process (5,000)")
    arguments = parser.parse_args()
    with opened() as account:
        if arguments.native:
            titles: tuple[str, ...] = ("numbers", "processes", "native buckets", "after a search", "once all went on")
            say_table(titles, natives(account, arguments.native, arguments.observations))
            return
        if arguments.writers:
            titles = ("writers", "routes", "of a core of Redis", "MB a second", "MB in Redis")
            say_table(titles, crowds(account, arguments.writers, arguments.batches))
            return
        for created in (True, False):
            if created:
                enable_created_metrics()
            else:
                disable_created_metrics()
            report.say(f"A series {'with' if created else 'without'} its time of creation\n")
            say_table(
                ("a series of a", "fields", "bytes in Redis", "bytes of a scrape from Redis", "bytes of text"),
                rooms(account, arguments.series),
            )
        report.say(f"A process takes {room_of_a_writer(account, arguments.series):.0f} bytes in each metric.\n")
        report.say("A batch, without times of creation\n")
        titles = ("of a", "changed series", "calls", "kB received", "kB sent", "processor, in SETs")
        say_table(titles, batches(account, arguments.batches))


if __name__ == "__main__":
    main()

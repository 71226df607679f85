"""Faults of the network, of servers and of files: whatever happens to a batch, it counts once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from conftest import RedisServer, free_port, wait_until
from fault_proxy import Fault, FaultProxy
from prometheus_client import CollectorRegistry
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

import pdc
from pdc.config import DEFAULT
from pdc.storage import StorageError

BATCHES = 500
EVERY = 3
"""Of so many requests that write a batch, one fails."""
FAULTS = {
    "lost": (Fault.LOSE,),
    "cut": (Fault.CUT,),
    "frozen": (Fault.FREEZE,),
    "mixed": (Fault.LOSE, Fault.CUT, Fault.SLOW, Fault.LOSE, Fault.CUT, Fault.FREEZE),
}
INTERVALS = pytest.mark.parametrize("interval", [0, 3600], ids=["write-through", "buffered"])


class Tally:
    """Metrics of all types that add up, and what they must show."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.hits = pdc.Counter("hits", "Hits.", ["path"], registry=registry)
        self.wait = pdc.Histogram("wait", "Seconds.", buckets=(1, 2), registry=registry)
        self.size = pdc.Summary("size", "Bytes.", registry=registry)
        self.level = pdc.Gauge("level", "Ups and downs.", registry=registry)
        self.busy = pdc.Gauge("busy", "Of this process.", registry=registry, multiprocess_mode="livesum")
        self.rounds = 0

    def update(self) -> None:
        """Update all; none of this may raise."""
        self.rounds += 1
        self.hits.labels("/").inc(2)
        self.wait.observe(0.5)
        self.wait.observe(1.5)
        self.size.observe(4)
        self.level.inc(3)
        self.level.dec(1)
        self.busy.inc(5)
        self.busy.dec(4)

    def check(self) -> None:
        """Assert that the storage shows what was counted, no less and no more."""
        rounds = float(self.rounds)
        assert shown() == {
            'hits_total{path="/"}': 2 * rounds,
            'wait_bucket{le="1.0"}': rounds,
            'wait_bucket{le="2.0"}': 2 * rounds,
            'wait_bucket{le="+Inf"}': 2 * rounds,
            "wait_count": 2 * rounds,
            "wait_sum": 2 * rounds,
            "size_count": rounds,
            "size_sum": 4 * rounds,
            "level": 2 * rounds,
            "busy": rounds,
        }


def shown() -> dict[str, float]:
    """The samples of the storage, but for times of creation."""
    lines = [line for line in pdc.generate_latest().decode().splitlines() if not line.startswith("#")]
    samples = dict(line.rsplit(" ", 1) for line in lines if "_created" not in line)
    return {sample: float(value) for sample, value in samples.items()}


def send() -> None:
    """Send what is pending, however often that fails."""
    for _ in range(50):
        try:
            pdc.flush()
        except StorageError:
            continue
        return
    pdc.flush()


@pytest.fixture(scope="module")
def shared_proxy(shared_redis_server: RedisServer) -> Iterator[FaultProxy]:
    """One proxy for the tests of this file."""
    with FaultProxy(shared_redis_server.port) as proxy:
        yield proxy


@pytest.fixture
def proxy(shared_proxy: FaultProxy, redis_server: RedisServer) -> Iterator[FaultProxy]:
    """A proxy before an empty server, with no fault so far."""
    assert shared_proxy.server_port == redis_server.port
    shared_proxy.injected.clear()
    yield shared_proxy
    shared_proxy.heal()


def plain_client(proxy: FaultProxy) -> Any:
    """A URL, of which pdc makes its own client."""
    return proxy.url


def retrying_client(proxy: FaultProxy) -> Any:
    """A client of the application, which sends again by itself what failed."""
    return redis.Redis.from_url(
        proxy.url,
        retry=Retry(ExponentialBackoff(cap=0.01, base=0.001), 3),
        retry_on_timeout=True,
        retry_on_error=[redis.ConnectionError, redis.TimeoutError],
    )


@INTERVALS
@pytest.mark.parametrize("make_client", [plain_client, retrying_client])
@pytest.mark.parametrize(("faults", "batches"), [(("lost", "cut", "mixed"), BATCHES), (("frozen",), 30)], ids=["fast", "frozen"])
def test_batches_whose_replies_do_not_come_count_once(
    proxy: FaultProxy,
    registry: CollectorRegistry,
    make_client: Callable[[FaultProxy], Any],
    faults: tuple[str, ...],
    batches: int,
    interval: float,
) -> None:
    pass

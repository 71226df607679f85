"""Redis in production: clusters, sentinels, replicas, users with few rights, TLS."""

from __future__ import annotations

import gc
import math
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, nullcontext, suppress
from functools import partial
from http import HTTPStatus
from itertools import count
from pathlib import Path
from string import ascii_lowercase
from types import FrameType, SimpleNamespace
from typing import Any, ClassVar

import commands
import failover
import pytest
import redis
from commands import COMMAND, ENVIRON, Done, Pdc, Terminal
from conftest import ROOT, RedisServer, free_port, wait_until
from failover import LAG_SECONDS, METRICS, Cluster, Run, Topology, Watched
from helpers import DOWN, UP
from prometheus_client import CollectorRegistry
from redis.sentinel import Sentinel

import pdc
from pdc.cli import findings_redis
from pdc.exposition import Scrape
from pdc.options import Options
from pdc.storage import StorageError
from pdc.storage.redis import RedisStorage, reading
from pdc.storage.redis import client as redis_client

pytestmark = pytest.mark.xdist_group("topologies")
command, terminal = commands.command, commands.terminal

BESIDE_SQLITE = pytest.mark.parametrize("storage", ["sqlite"], indirect=True)
REMOVED = 2000
"""The number of series, which take more pieces than one."""
SECRET = "s3cret"
RULES = dict(re.findall(r"^ +ACL SETUSER (\S+) on >secret (.*)$", (ROOT / "docs" / "redis.md").read_text(), re.MULTILINE))
"""The rights of each user in the documentation."""

# A replica takes over while processes count


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Redis Cluster."""
    with failover.started(Cluster, tmp_path_factory.mktemp("cluster")) as topology:
        yield topology


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A primary and a replica with a Sentinel."""
    with failover.started(Watched, tmp_path_factory.mktemp("watched")) as topology:
        yield topology


@pytest.fixture(params=["cluster", "watched"])
def topology(request: pytest.FixtureRequest) -> Iterator[Topology]:
    """Each of them, in use by this process."""
    topology: Topology = request.getfixturevalue(request.param)
    with topology.client() as client:
        pdc.setup(redis=client)
        yield topology
        pdc.shutdown()


def check(result: Run) -> None:
    """Assert that no update raised, that scrapes were answered, and that nothing is counted twice."""
    lines = [line for line in result.stderr.splitlines() if "has metrics without redis_prefix" not in line]  # of other tests
    assert all(line.startswith((DOWN, UP)) for line in lines), result.stderr
    assert HTTPStatus.OK in result.answers
    assert set(result.answers) <= {HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE}
    assert result.lost >= 0


def test_a_primary_that_hands_over(topology: Topology) -> None:
    """A replica that takes over with all data loses nothing."""
    result = failover.run(topology, topology.hand_over)
    check(result)
    assert result.lost == 0


def test_a_primary_that_is_killed(topology: Topology) -> None:
    """Only acknowledged updates that the replica had not received are lost."""
    result = failover.run(topology, lambda: topology.kill(LAG_SECONDS))
    check(result)
    assert 0 < result.lost < result.acknowledged / 2


@pytest.mark.long
@pytest.mark.parametrize("way", ["hand_over", "kill"])
def test_a_primary_that_goes_amid_a_removal(
    topology: Topology, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The replica finishes it, and series that were counted again have exactly the later counts."""
    ways: dict[str, Callable[[], None]] = {"hand_over": topology.hand_over, "kill": partial(topology.kill, LAG_SECONDS)}
    wait = pdc.Histogram(_name_beside_index(topology), "Wait.", ["user"], buckets=[1, 2], registry=registry)
    with topology.client() as client:
        pdc.setup(redis=client, flush_interval=3600)
        pdc.clear()
        for number in range(REMOVED + 100):
            wait.labels(str(number)).observe(1.5)
        pdc.flush()
        storage: Any = pdc.config.DEFAULT.storage
        pieces = 0

        def go(original: Callable[..., Any], script: str, *arguments: Any) -> Any:
            nonlocal pieces
            pieces += 1
            if pieces == 2:
                ways[way]()
            return original(script, *arguments)

        monkeypatch.setattr(storage.keys, "call", partial(go, storage.keys.call))
        for number in range(REMOVED):
            wait.remove(str(number))
        again = range(0, REMOVED + 50, 2)
        for number in again:
            wait.labels(str(number)).observe(0.5)
        wait_until(_has_sent, failover.PATIENCE)
        assert pieces > 4
        topology.heal()
        (metric,) = wait.collect()
        sums = {int(sample.labels["user"]): sample.value for sample in metric.samples if sample.name.endswith("_sum")}
        kept = dict.fromkeys(range(REMOVED, REMOVED + 100), 1.5)
        assert sums == kept | {number: kept.get(number, 0.0) + 0.5 for number in again}
        pdc.shutdown()


def _name_beside_index(topology: Topology) -> str:
    """The name of a metric on the primary that will fail."""
    if isinstance(topology, Cluster):
        index = topology.primary()
        return next(name for name in ascii_lowercase if topology.primary(f"prometheus_#_{name}") is index)
    return "a"


def _has_sent() -> bool:
    """Try to send all pending updates, and return True if that succeeded."""
    with suppress(StorageError):
        pdc.flush()
        return True
    return False


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_while_a_cluster_is_asked_for_its_nodes(cluster: Cluster, registry: CollectorRegistry) -> None:
    """A child does not wait for the thread that asks for the nodes in its parent."""
    with cluster.client() as client:
        pdc.setup(redis=client, flush_interval=3600)
        hits = pdc.Counter("hits", "Hits.", registry=registry)
        hits.inc()
        pdc.flush()
        storage: Any = pdc.config.DEFAULT.storage
        holding, done = threading.Event(), threading.Event()

        def hold() -> None:
            manager = client.nodes_manager
            with storage.server.lock, client._lock, manager._lock, getattr(manager, "_initialization_lock", nullcontext()):
                holding.set()
                done.wait(20)

        thread = threading.Thread(target=hold)
        thread.start()
        holding.wait()
        child = os.fork()
        if not child:
            status = 1
            try:
                signal.alarm(10)
                hits.inc(5)
                pdc.flush()
                status = 0
            finally:
                os._exit(status)
        done.set()
        thread.join()
        assert os.waitpid(child, 0)[1] == 0
        assert "hits_total 6.0" in pdc.generate_latest().decode()
        pdc.shutdown()  # they would open connections again once the client is closed


def test_keys_and_scripts_that_go_from_a_node(cluster: Cluster, registry: CollectorRegistry) -> None:
    """Where a node of a cluster forgets scripts, a key or everything, metrics of other nodes keep their numbers."""
    with cluster.client() as client:
        pdc.setup(redis=client)
        pdc.clear()
        counters = {name: pdc.Counter(name, "Hits.", registry=registry) for name in ("a", "b", "c", "d", "e", "f")}
        owners = {name: cluster.primary(f"prometheus_#_{name}").port for name in counters}
        assert len(set(owners.values())) > 1

        def count(**expected: float) -> None:
            for counter in counters.values():
                counter.inc()
            pdc.flush()
            text = pdc.generate_latest().decode()
            assert dict(re.findall(r"^(\w)_total (.*)$", text, re.MULTILINE)) == {
                name: str(expected.get(name, expected["others"])) for name in counters
            }

        count(others=1.0)
        with cluster.primary("prometheus_#_a").client() as node:
            node.script_flush()
            count(others=2.0)
            client.delete("prometheus#")
            count(others=3.0)
            client.delete("prometheus_#_b")
            count(others=4.0, b=1.0)
            node.flushall()
            lost = {name for name, owner in owners.items() if owner == owners["a"]}
            count(others=5.0, **({"b": 2.0} | dict.fromkeys(lost, 1.0)))
        pdc.shutdown()


def test_a_limit_amid_a_call_of_a_cluster_ends_its_connection(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of a handler is no reply, also one of a class that a server's errors have: a reply may be on its way."""
    broken_off: list[Any] = []

    def expire(_number: int, _frame: FrameType) -> None:
        raise redis.ResponseError("late")

    def read_response(connection: Any, **_options: Any) -> None:
        monkeypatch.undo()
        broken_off.append(connection)
        expire(0, sys._getframe())

    storage = RedisStorage(cluster.url, "test")
    storage.id()
    monkeypatch.setattr(redis.Connection, "read_response", read_response)
    with pytest.raises(StorageError, match="late"):
        storage.read()
    assert [each._sock for each in broken_off] == [None]
    storage.close()


# URLs of clusters and sentinels

URLS: dict[str, tuple[list[tuple[str, int]], dict[str, Any], dict[str, Any]]] = {
    "redis+cluster://h": ([("h", 6379)], {}, {}),
    "redis+cluster://ann:p%40ss@h:1,[::1]:2,x.y/0?socket_timeout=9": (
        [("h", 1), ("::1", 2), ("x.y", 6379)],
        {"username": "ann", "password": "p@ss", "socket_timeout": 9.0, "socket_connect_timeout": 2.0},
        {},
    ),
    "rediss+cluster://h?ssl_ca_certs=ca.pem": ([("h", 6379)], {"ssl": True, "ssl_ca_certs": "ca.pem"}, {}),
    "redis+sentinel://:pass@h,i:7/my%20primary/3?client_name=us&sentinel_password=other": (
        [("h", 26379), ("i", 7)],
        {"service_name": "my primary", "password": "pass", "db": 3, "client_name": "us", "socket_timeout": 5.0},
        {"password": "other", "socket_timeout": 2.0, "client_name": None},
    ),
    "rediss+sentinel://h/m?ssl_ca_certs=ca.pem": (
        [("h", 26379)],
        {"service_name": "m", "ssl_ca_certs": "ca.pem"},
        {"ssl_ca_certs": "ca.pem"},
    ),
}


@pytest.mark.parametrize("url", URLS)
def test_a_url_names_a_cluster_or_sentinels(url: str) -> None:
    """Hosts, user, options and TLS are those of the servers, `sentinel_...` those of sentinels; nothing connects."""
    nodes, expected, of_sentinels = URLS[url]
    made = redis_client.client_from_url(url)
    if isinstance(made, redis_client.Cluster):
        assert made.nodes == nodes
        found = made.options
    else:
        pool = made.connection_pool
        assert ("SSL" in pool.connection_class.__name__) is url.startswith("rediss")
        found = {**pool.connection_kwargs, "service_name": pool.service_name}
        sentinels = [each.connection_pool for each in pool.sentinel_manager.sentinels]
        kwargs = [each.connection_kwargs for each in sentinels]
        assert [(each["host"], each["port"]) for each in kwargs] == nodes
        assert {name: kwargs[0].get(name) for name in of_sentinels} == of_sentinels
        assert ("SSL" in sentinels[0].connection_class.__name__) is url.startswith("rediss")
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis+cluster://", "expected one like redis://:password@localhost:6379/0, redis\\+cluster://"),
        ("redis+cluster://h,,i", "expected one like"),
        ("redis+nonsense://h", "expected one like"),
        (f"redis+cluster://:{SECRET}/x@h", "expected one like"),
        (f"redis+cluster://:{SECRET}@h/3", r"\+cluster://\*\*\*@h/3': a cluster has the database 0 only"),
        (f"redis+cluster://:{SECRET}@h?sokcet_timeout=1", "redis-py has no option 'sokcet_timeout'"),
        (f"redis+sentinel://:{SECRET}@h", "expected the name of the primary .*, as in redis\\+sentinel://host"),
        (f"redis+sentinel://:{SECRET}@h/m/x?sentinel_password={SECRET}", "the number of a database after the port, got 'x'"),
        (f"redis+sentinel://h/m?sentinel_pasword={SECRET}", "redis-py has no option 'pasword'"),
        (f"redis+sentinel://h/m/0?password={SECRET}@x", "written as %40"),
    ],
)
def test_a_url_of_a_cluster_or_sentinels_that_cannot_be_used(url: str, reason: str) -> None:
    """`setup` refuses it with the remedy, and shows no password."""
    with pytest.raises(ValueError, match=reason) as raised:
        pdc.setup(redis=url)
    assert SECRET not in said(raised.value)


@pytest.fixture(params=["cluster", "watched"])
def named(request: pytest.FixtureRequest) -> str:
    """The URL of each of them."""
    url: str = request.getfixturevalue(request.param).url
    return url


@BESIDE_SQLITE
def test_commands_at_a_cluster_or_sentinels(
    named: str, storage: dict[str, Any], command: Pdc, registry: CollectorRegistry
) -> None:
    """All commands that read and change metrics accept their URL."""
    pdc.setup(redis=named, redis_prefix="cli")
    names = [f"orders_{letter}" for letter in ascii_lowercase[:METRICS]]
    for name in names:
        counter = pdc.Counter(name, "Orders.", ["till"], registry=registry)
        counter.labels("1").inc(2)
        counter.labels("2").inc(40)
    there = ["--redis", named, "--prefix", "cli"]
    copied = ["--redis", named, "--prefix", "copied"]
    shown = command("show", *there, at=None)
    assert [row[0] for row in shown.rows()] == names
    assert "1 process alive" in shown.errors
    assert '{till="2"}\t40' in command("get", names[0], *there, at=None).output
    assert command("delete", f'{names[0]}{{till="1"}}', "--yes", *there, at=None).code == 0
    page = command("dump", *there, at=None).output
    assert page.count("_total{") == 2 * METRICS - 1
    assert "6 metrics copied" in command("copy", named, storage["sqlite"], "--from-prefix", "cli", at=None).errors
    assert command("copy", storage["sqlite"], named, "--to-prefix", "copied", at=None).code == 0
    assert command("dump", *copied, at=None).output == page
    assert "0 metrics of version 2" in command("migrate", *there, at=None).errors
    assert command("clear", "--yes", *copied, at=None).code == 0
    assert command("show", *copied, at=None).rows() == []
    assert command("show", *there, at=None).rows()
    pdc.clear()
    pdc.shutdown()


def findings(done: Done, subject: str) -> list[str]:
    """The levels and texts of the findings about that."""
    return [f"{level} {text}" for level, about, text, _ in done.rows() if about == subject]


@BESIDE_SQLITE
def test_check_looks_at_every_primary(cluster: Cluster, command: Pdc) -> None:
    """Of a cluster the state, and of each primary the memory, the clock and the keys of others are looked at."""
    there = ["check", "--redis", cluster.url, "--prefix", "checked"]
    with cluster.client() as client:
        nodes = {node.name: f"prometheus_checked_{letter}" for letter in ascii_lowercase for node in [_node(client, letter)]}
        for key in nodes.values():
            client.set(key, "of others")
        with cluster.primary().client() as evicting:
            evicting.config_set("maxmemory", "1gb")
            evicting.config_set("maxmemory-policy", "allkeys-lru")
            done = command(*there, at=None)
            evicting.config_set("maxmemory", "0")
        for key in nodes.values():
            client.delete(key)
    (keys,) = findings(done, "keys")
    assert len(nodes) == 3
    assert all(key in keys for key in nodes.values())
    for subject in ("reach", "clock", "version", "memory"):
        found = findings(done, subject)
        assert sorted(re.findall(r"Redis (\S+:\d+)", " ".join(found))) == sorted(nodes)
    errors = [row for row in done.rows() if row[0] == "ERROR"]
    assert [(subject, text.partition(" may")[0]) for _, subject, text, _ in errors] == [
        ("memory", f"Redis 127.0.0.1:{cluster.primary().port}: maxmemory-policy allkeys-lru")
    ]
    assert done.code == 1
    assert findings(done, "cluster") == ["ok state ok, 3 of 6 nodes have slots"]
    assert findings(done, "role") == []
    assert findings(done, "rights") == ["ok this user may read and call scripts"]


def _node(client: Any, letter: str) -> Any:
    return client.get_node_from_key(f"prometheus_checked_{letter}")


@BESIDE_SQLITE
def test_check_asks_every_sentinel(watched: Watched, command: Pdc) -> None:
    """A sentinel that does not answer is a warning; of the others each says whether enough agree."""
    url = watched.url.replace(f"/{failover.SERVICE}", f",127.0.0.1:1/{failover.SERVICE}")
    done = command("check", "--redis", url, "--prefix", "checked", at=None)
    well, missing = findings(done, "sentinel")
    assert re.match(r"ok Redis 127.0.0.1:\d+: OK 1 usable Sentinels", well)
    assert missing.startswith("warning Redis 127.0.0.1:1 failed: ConnectionError")
    assert findings(done, "role") == []


def test_a_cluster_that_has_failed_is_an_error() -> None:
    """Slots without a primary are an error, with the remedy."""
    reply = b"cluster_state:fail\r\ncluster_slots_ok:9000\r\ncluster_known_nodes:6\r\ncluster_size:3\r\n"
    server: Any = SimpleNamespace(run=lambda _: [reply])
    (finding,) = findings_redis._of_cluster(server)
    assert finding.level == "ERROR"
    assert finding.text == "state fail, 3 of 6 nodes have slots, 9000 of 16384 slots have a primary"
    assert "redis-cli --cluster check" in finding.remedy


@pytest.mark.long
@pytest.mark.parametrize("way", ["hand_over", "kill"])
def test_a_primary_that_goes_from_a_url(topology: Topology, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Processes that name the servers by a URL count on at the replica as those with a client do."""
    monkeypatch.setattr(topology, "expression", repr(topology.url))
    pdc.setup(redis=topology.url)
    result = failover.run(topology, getattr(topology, way))
    check(result)
    assert result.lost == 0 or way == "kill"


@pytest.mark.long
def test_programs_at_a_cluster_or_sentinels(named: str, tmp_path: Path, terminal: Callable[..., Terminal]) -> None:
    """`run` counts there in all children, `serve` and `top` show it."""
    there = ["--redis", named, "--prefix", "programs"]
    source = "import os, prometheus_client as p; c = p.Counter('forks', 'F.'); os.fork(); c.inc(2)"
    subprocess.run([*COMMAND, "run", *there, "--", sys.executable, "-c", source], check=True, env=ENVIRON, cwd=tmp_path)
    with subprocess.Popen([*COMMAND, "serve", *there, "--port", "0"], env=ENVIRON, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        (port,) = re.findall(r":(\d+)/metrics", server.stderr.readline())
        for path, content in (("metrics", "forks_total 4.0"), ("healthz", "the storage can be read")):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}") as answer:
                assert content in answer.read().decode()
        server.terminate()
        assert server.wait(20) == 0
    watched = terminal("top", "--interval", "0.1", *there)
    watched.wait_for("read in")
    watched.type("q")
    assert watched.end() == 0
    subprocess.run([*COMMAND, "clear", "--yes", *there], check=True, env=ENVIRON)


# Servers that do not answer


@pytest.fixture
def frozen(own_redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    """A server that accepts connections and never answers; timeouts are short."""
    monkeypatch.setattr(redis_client, "SOCKET_SECONDS", 0.3)
    monkeypatch.setattr(redis_client, "CONNECT_SECONDS", 0.2)
    own_redis_server.freeze()
    yield own_redis_server
    own_redis_server.thaw()


def plain(port: int) -> redis.Redis:
    """A client with redis-py's defaults."""
    return redis.Redis(host="127.0.0.1", port=port)


def blocking(port: int) -> redis.Redis:
    """A client that waits when it has no free connection."""
    return redis.Redis(connection_pool=redis.BlockingConnectionPool(host="127.0.0.1", port=port, max_connections=1))


def by_sentinel(port: int) -> redis.Redis:
    """A client whose Sentinel is that server."""
    client: redis.Redis = Sentinel([("127.0.0.1", port)]).master_for("metrics")
    return client


@pytest.mark.parametrize("make_client", [plain, blocking, by_sentinel])
def test_a_client_that_waits_for_long(
    frozen: RedisServer, registry: CollectorRegistry, make_client: Callable[[int], redis.Redis]
) -> None:
    """Updates and scrapes give up long before the application's client would; the client stays unchanged."""
    with make_client(frozen.port) as client:
        options = dict(client.connection_pool.connection_kwargs)
        pdc.setup(redis=client, journal=False)
        start = time.monotonic()
        pdc.Counter("hits", "Hits.", registry=registry).inc()
        with pytest.raises(StorageError):
            pdc.flush()
        assert Scrape().answer().status == HTTPStatus.SERVICE_UNAVAILABLE
        assert time.monotonic() - start < 4
        assert pdc.get_redis_conn() is client
        assert client.connection_pool.connection_kwargs == options
        pdc.shutdown()


def test_a_client_with_shorter_timeouts(own_redis_server: RedisServer) -> None:
    """The shorter timeouts of a client are kept, and so are its other arguments."""
    with own_redis_server.client(socket_timeout=0.1, client_name="ours", decode_responses=True) as client:

        def connections() -> int:
            return [entry["name"] for entry in client.client_list()].count("ours")

        pdc.setup(redis=client)
        pdc.generate_latest()
        assert connections() == 2
        own_redis_server.freeze()
        start = time.monotonic()
        assert Scrape().answer().status == HTTPStatus.SERVICE_UNAVAILABLE
        assert time.monotonic() - start < 2
        own_redis_server.thaw()
        pdc.shutdown()
        wait_until(lambda: connections() == 1)


def test_a_client_of_another_class_is_used_as_it_is(redis_server: RedisServer, registry: CollectorRegistry) -> None:
    """Commands of pdc pass through the methods of a subclass or a fake."""

    class Own(redis.Redis):
        commands: ClassVar[list[str]] = []

        def execute_command(self, *args: Any, **options: Any) -> Any:
            self.commands.append(args[0])
            return redis.Redis.execute_command(self, *args, **options)

    with Own(host="127.0.0.1", port=redis_server.port) as client:
        pdc.setup(redis=client)
        pdc.Counter("hits", "Hits.", registry=registry).inc()
        assert Own.commands
        assert set(Own.commands) == {"SCRIPT LOAD"}  # the others use a pipeline
        pdc.shutdown()


@pytest.fixture
def silent() -> Iterator[list[socket.socket]]:
    """Three sentinels that accept connections and never answer."""
    with ExitStack() as stack:
        yield [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]


def url_of(sentinels: list[socket.socket]) -> str:
    """Names the primary that these sentinels know."""
    return f"redis+sentinel://{','.join(f'127.0.0.1:{each.getsockname()[1]}' for each in sentinels)}/{failover.SERVICE}"


def connections(sentinel: socket.socket) -> int:
    """The count of connections that were made since the last look."""
    sentinel.setblocking(False)
    for number in count():
        try:
            sentinel.accept()[0].close()
        except BlockingIOError:
            return number
    raise AssertionError


def test_each_sentinel_is_asked_once(silent: list[socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that finds no primary fails: another look would wait for all sentinels once more."""
    monkeypatch.setattr(redis_client, "CONNECT_SECONDS", 0.1)
    storage = RedisStorage(url_of(silent))
    with pytest.raises(StorageError, match="No master found"):
        storage.read()
    assert [*map(connections, silent)] == [1, 1, 1]
    storage.close()


@pytest.mark.parametrize("kind", ["url", "client"])
def test_sentinels_share_the_deadline_of_a_call(
    silent: list[socket.socket], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """All are asked before the deadline, however long each may take without one."""
    monkeypatch.setattr(redis_client, "CONNECT_SECONDS", 20.0)
    url = url_of(silent)
    storage = RedisStorage(url if kind == "url" else redis_client.client_from_url(url))
    began = time.monotonic()
    storage.set_deadline(began + 0.4)
    with pytest.raises(StorageError, match="No master found"):
        storage.read()
    assert time.monotonic() < began + redis_client.CONNECT_SECONDS
    assert [*map(connections, silent)] == [1, 1, 1]
    storage.close()


@pytest.mark.parametrize("ends", [False, True], ids=["closed", "deadline ends"])
def test_a_deadline_leaves_no_connection_to_a_sentinel(watched: Watched, ends: bool) -> None:
    """The connections of calls with a deadline are closed with the storage, and where the deadline ends."""
    storage = RedisStorage(f"{watched.url}?sentinel_client_name=limited")
    gc.disable()
    try:
        for _ in range(2):
            storage.set_deadline(time.monotonic() + 20)
            storage.read()
            storage.server._connection.disconnect()  # as the server does
            storage.read()
            if ends:
                storage.set_deadline(math.inf)
                storage.read()
            storage.close()
        with watched._sentinel.client(decode_responses=True) as client:
            wait_until(lambda: "limited" not in [each["name"] for each in client.client_list()])
    finally:
        gc.enable()


# Clients that only read


@pytest.fixture
def primary(redis_server: RedisServer, registry: CollectorRegistry) -> RedisServer:
    """A server with a metric."""
    pdc.setup(redis=redis_server.url)
    pdc.Counter("hits", "Hits.", registry=registry).inc(3)
    pdc.shutdown()
    return redis_server


READER = """
import time, urllib.request, urllib.error
server, thread = (setup(), pdc.start_http_server(0, addr="127.0.0.1"))[1]
def scrape():
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
for path in ("/metrics", "/metrics"):
    print(*scrape())
print(pdc.generate_latest().decode())
"""
UPDATE = """
hits = pdc.Counter("hits", "Hits.")
for _ in range(3):
    hits.inc()
print(*scrape())
"""


def test_a_replica_is_scraped(primary: RedisServer, tmp_path: Path, run_script: Callable[..., Any]) -> None:
    """The HTTP endpoint of a process that only scrapes may read a replica; an update there is logged once."""
    replica = RedisServer(tmp_path, "--replicaof", "127.0.0.1", str(primary.port))
    try:
        with primary.client() as client:
            client.config_set("repl-diskless-sync-delay", "0")
        with replica.client() as client:
            wait_until(lambda: client.info("replication")["master_link_status"] == "up", 30)
            client.config_resetstat()
            result = run_script(READER, storage={"redis": replica.url})
            assert result.stdout.count("hits_total 3.0") == 3
            assert result.stdout.count("200 ") == 2
            assert result.stderr == ""
            called = {name.removeprefix("cmdstat_") for name in client.info("commandstats")}
            assert {"zrange", "hgetall", "time"} <= called
            assert not {name for name in called if name.startswith(("eval", "script", "h", "z"))} - {
                "zrange",
                "hgetall",
                "hlen",
                "hscan",
                "hello",
            }
            result = run_script(READER + UPDATE, storage={"redis": replica.url, "journal": False})
            assert "503 " in result.stdout
            down = [line for line in result.stderr.splitlines() if line.startswith(DOWN)]
            assert len(down) == 1
            assert "This is a replica: give setup() the primary" in down[0]
    finally:
        replica.stop()


def test_a_redis_out_of_memory_is_scraped(primary: RedisServer, run_script: Callable[..., Any]) -> None:
    """While Redis accepts no write, the endpoint of a process that only scrapes shows the stored data."""
    with primary.client() as client:
        client.config_set("maxmemory", "1")
        try:
            result = run_script(READER, storage={"redis": primary.url})
        finally:
            client.config_set("maxmemory", "0")
    assert result.stdout.count("200 ") == 2
    assert result.stdout.count("hits_total 3.0") == 3


# Users with few rights


def allow(server: RedisServer, user: str, rules: str) -> str:
    """Give the user exactly these rights, and return the URL."""
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", user, "reset", "on", ">secret", *rules.split())
    return f"redis://{user}:secret@127.0.0.1:{server.port}/0"


LARGE = {"+hscan", "+hmget"}
"""Rights that only the reader of a large metric needs."""


def too_few(server: RedisServer, rules: str, but: Collection[str] = ()) -> Iterator[str]:
    """The URL of a user without one of the rights, for each of them but some."""
    for missing in sorted(set(rules.split()) - {"-@all", *but}):
        yield allow(server, "user", " ".join(rule for rule in rules.split() if rule != missing))


def exercise(url: Any) -> None:
    """Make every kind of write."""
    registry = CollectorRegistry()
    for prefix, expire in (("", 3600), ("shop", None)):
        pdc.setup(redis=url, redis_prefix=prefix, redis_expire=expire, journal=False)
        hits = pdc.Counter(f"hits_{expire}", "Hits.", ["path"], registry=registry)
        live = pdc.Gauge(f"live_{expire}", "Live.", registry=registry, multiprocess_mode="livesum")
        live.set(1)
        pdc.Counter("old", "Counted by version 2.", registry=CollectorRegistry()).inc()
        hits.labels("/a").inc()
        hits.labels("/b").inc()
        hits.remove("/a")
        hits.remove_by_labels({"path": "/c"})
        pdc.flush()
        assert f'hits_{expire}_total{{path="/b"}} 1.0' in pdc.generate_latest().decode()
        pdc.clear()
        pdc.flush()


def test_a_writer_with_the_least_rights(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    """The documented rights of a writer suffice; the error for any missing right lists them all."""
    rules = RULES["pdc-writer"]
    with redis_server.client() as client:
        client.hset("prometheus_old", "_total:{}", "5")
        exercise(allow(redis_server, "writer", rules))
        assert client.zscore("prometheus#", "#version2:old") is not None
    pdc.shutdown()
    assert caplog.text == ""
    for url in too_few(redis_server, rules):
        with redis_server.client() as client:
            client.flushall()
            client.hset("prometheus_old", "_total:{}", "5")
        with pytest.raises(StorageError) as raised:
            exercise(url)
        needed = re.search(r"A user that counts needs the rights (.*?);", str(raised.value))
        assert needed, raised.value
        assert set(needed[1].split()) | {"-@all"} == set(rules.split())
        del raised  # its traceback keeps the metrics of this user alive, which the next one would send first
        gc.collect()
        pdc.shutdown()


@pytest.mark.parametrize(
    "reason",
    [
        "The user executing the script can't run this command or subcommand script: 7f138b, on @user_script:1.",
        "ACL failure in script: User writer has no permissions to run the 'exists' command script: on @user_script:1.",
    ],
    ids=["redis-7.0", "redis-7.2-valkey"],
)
def test_a_right_that_a_script_lacks(redis_server: RedisServer, reason: str) -> None:
    """The error for a command that the user may not call in a script lists the rights, as each server words it."""
    with redis_server.client() as client:
        failure = RedisStorage(client).server.failure(redis.ResponseError(reason))
    assert "A user that counts needs the rights ~prometheus_*" in str(failure)


def test_a_database_other_than_0_needs_one_more_right(redis_server: RedisServer) -> None:
    """The error of a user who may not select it names that right: the others are those of database 0."""
    refusal = redis.exceptions.NoPermissionError("User writer has no permissions to run the 'select' command")
    with redis_server.client() as client:
        failure = RedisStorage(client).server.failure(refusal)
    assert str(failure).endswith("; in a database other than 0, both need +select, too.")


def test_a_reader_with_the_least_rights(primary: RedisServer, run_script: Callable[..., Any]) -> None:
    """The documented rights of a reader suffice; the error for any missing right lists them all."""
    rules = RULES["pdc-reader"]
    result = run_script(READER, storage={"redis": allow(primary, "reader", rules)})
    assert result.stdout.count("hits_total 3.0") == 3
    for url in too_few(primary, rules, but=LARGE):
        pdc.setup(redis=url)
        with pytest.raises(StorageError, match=re.escape(f"one that only scrapes, {rules.removeprefix('-@all ')}.")):
            pdc.generate_latest()
        pdc.shutdown()


def test_a_reader_of_large_metrics_with_the_least_rights(primary: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error for any missing right that only large metrics need lists them all."""
    rules = RULES["pdc-reader"]
    monkeypatch.setattr(reading, "MOST_READ", 0)
    looks = reading.Reader.look_through

    def look_through_a_busy_metric(self: reading.Reader, name: str) -> dict[str, str]:
        return {**looks(self, name), "#stems": "\n_sum:{\n", "_sum:{}": f"{time.monotonic_ns()}"}

    monkeypatch.setattr(reading.Reader, "look_through", look_through_a_busy_metric)
    for url in too_few(primary, rules, but=set(rules.split()) - LARGE):
        pdc.setup(redis=url)
        with pytest.raises(StorageError, match=re.escape(f"one that only scrapes, {rules.removeprefix('-@all ')}.")):
            pdc.generate_latest()
        pdc.shutdown()


def test_a_writer_of_a_cluster_with_the_least_rights(cluster: Cluster) -> None:
    """The documented rights for a cluster suffice; a wrong password is not shown."""
    more = "+cluster|slots +command +info"
    assert all(f"`{right}`" in (ROOT / "docs" / "redis.md").read_text().replace(" +", "` `+") for right in more.split())
    for server in cluster.servers:
        allow(server, "writer", f"{RULES['pdc-writer']} {more}")
    with redis.RedisCluster(host="127.0.0.1", port=cluster.servers[0].port, username="writer", password="secret") as client:
        exercise(client)
        for server in cluster.servers:
            with server.client() as admin:
                admin.execute_command("ACL", "SETUSER", "writer", "resetpass", f">{SECRET}-changed")
                admin.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(StorageError) as raised:
            pdc.generate_latest()
        assert "secret" not in said(raised.value)
        pdc.shutdown()


# TLS and passwords


@pytest.fixture(scope="module")
def tls_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server that demands TLS and a password, and has a self-signed certificate."""
    folder, port = tmp_path_factory.mktemp("tls"), free_port()
    certificate, key = str(folder / "certificate.pem"), str(folder / "key.pem")
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    make += f" -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
    subprocess.run(make.split(), check=True, capture_output=True)
    files = ("--tls-cert-file", certificate, "--tls-key-file", key, "--tls-auth-clients", "no")
    server = RedisServer(folder, "--tls-port", str(port), *files)
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "user", "on", f">{SECRET}", "allkeys", "allcommands")
        client.execute_command("ACL", "SETUSER", "default", "off")
    yield f"rediss://user:{SECRET}@127.0.0.1:{port}/0?ssl_ca_certs={certificate}"
    server.stop()


def said(error: BaseException | None) -> str:
    """The messages of an error and of its causes, as a traceback shows them, without lines of code."""
    parts = []
    while error is not None:
        parts += [*traceback.format_exception_only(error), repr(error)]
        error = error.__cause__ or error.__context__
    return "".join(parts)


def test_tls_with_a_password(tls_url: str, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture) -> None:
    """Metrics are counted over an encrypted connection, and no message of ours shows the password."""
    pdc.setup(redis=tls_url)
    pdc.Counter("hits", "Hits.", registry=registry).inc()
    assert "hits_total 1.0" in pdc.generate_latest().decode()
    storage = RedisStorage(tls_url)
    options = Options(redis_url=tls_url, metrics_token=SECRET)
    shown = [repr(storage), str(storage), storage.identity, repr(options), str(options), repr(pdc.get_redis_conn())]
    assert SECRET not in " ".join(shown) + caplog.text
    pdc.shutdown()


@pytest.mark.parametrize(
    ("scheme", "database", "expected"),
    [
        ("rediss", 0, r"rediss:// is for ports with TLS only\.$"),
        ("redis+cluster", 0, r"This is one server: use redis:// in place of redis\+cluster://\.$"),
        ("redis+sentinel", "mymaster", "No sentinel is at this port: name one at 26379, or use redis:// for one server"),
        ("redis", 99, "The server has fewer databases: use a lower number after the port"),
    ],
)
def test_a_url_that_does_not_suit_the_server(
    scheme: str, database: int | str, expected: str, redis_server: RedisServer, registry: CollectorRegistry
) -> None:
    """The error names the part of the URL to change."""
    pdc.setup(redis=f"{scheme}://127.0.0.1:{redis_server.port}/{database}", journal=False, flush_interval=3600)
    pdc.Counter("hits", "Hits.", registry=registry).inc()
    with pytest.raises(StorageError, match=expected):
        pdc.flush()


def sentinel_with_password(_: str) -> redis.Redis:
    """A client whose Sentinel cannot be reached."""
    sentinel = Sentinel([("127.0.0.1", 1)], sentinel_kwargs={"password": SECRET}, password=SECRET)
    client: redis.Redis = sentinel.master_for("metrics")
    return client


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda url: url.replace(SECRET, f"{SECRET}-wrong"), "Check the user, the password"),
        (lambda url: url.partition("?")[0], "certificate verify failed.* Name its authority with .ssl_ca_certs="),
        (
            lambda url: url.replace("rediss:", "redis:").partition("?")[0],
            "Check that it runs.* A port with TLS needs rediss://",
        ),
        (lambda url: re.sub(r":\d+/", ":1/", url), "Connection refused"),
        (sentinel_with_password, "No master found for 'metrics' : [a-z:]*ConnectionError.*Check that these .*: 127.0.0.1:1"),
        (lambda _: f"redis+sentinel://:{SECRET}@127.0.0.1:1/m?sentinel_password={SECRET}", "No master found"),
        (lambda _: f"redis+cluster://:{SECRET}@127.0.0.1:1,127.0.0.1:2", "Redis cluster failed: .* Check that it runs"),
    ],
    ids=["wrong-password", "unknown-authority", "no-tls", "unreachable", "sentinel", "sentinel-url", "cluster-url"],
)
def test_a_connection_that_fails_shows_no_password(
    tls_url: str, registry: CollectorRegistry, caplog: pytest.LogCaptureFixture, change: Callable[[str], Any], expected: str
) -> None:
    """The application runs on through any fault; errors and log give the reason, and neither the password nor the URL."""
    pdc.setup(redis=change(tls_url), journal=False)
    pdc.Counter("hits", "Hits.", registry=registry).inc()
    with pytest.raises(StorageError, match=expected) as raised:
        pdc.flush()
    answer = Scrape().answer()
    assert answer.status == HTTPStatus.SERVICE_UNAVAILABLE
    pdc.shutdown()
    text = said(raised.value) + answer.body.decode() + caplog.text
    assert SECRET not in text
    assert "rediss://user" not in text


def test_a_deadline_breaks_off_a_call_over_tls(
    tls_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever the other thread is, its connection ends as one that the server closes, and keeps its TLS until then."""
    reads, broken_off = threading.Event(), threading.Event()
    read = ssl.SSLSocket.read

    def wait_and_read(self: ssl.SSLSocket, *arguments: Any) -> Any:
        reads.set()
        broken_off.wait(20)
        return read(self, *arguments)

    pdc.setup(redis=tls_url)
    pdc.generate_latest()
    storage: Any = pdc.config.DEFAULT.storage
    errors: list[str] = []

    def scrape() -> None:
        with pytest.raises(StorageError) as raised:
            pdc.generate_latest()
        errors.append(str(raised.value))

    monkeypatch.setattr(ssl.SSLSocket, "read", wait_and_read)
    thread = threading.Thread(target=scrape)
    thread.start()
    reads.wait(20)
    storage.set_deadline(0.0)
    broken_off.set()
    thread.join()
    monkeypatch.undo()
    assert "Check that it runs" in errors[0]
    pdc.shutdown()
    assert "nobody foresaw" not in caplog.text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("sokcet_timeout=1", "redis-py has no option 'sokcet_timeout'"),
        ("socket_timeout=soon", "expected one like"),
        ("ssl_cert_reqs=maybe", "Invalid SSL Certificate Requirements Flag: maybe"),
    ],
)
def test_an_option_of_a_url_that_does_not_exist(options: str, reason: str) -> None:
    """`setup` refuses it, and shows the URL without the password."""
    with pytest.raises(ValueError, match=reason) as raised:
        pdc.setup(redis=f"rediss://user:{SECRET}@localhost/0?{options}&ssl_password={SECRET}")
    assert SECRET not in said(raised.value)
    assert options.partition("=")[0] in str(raised.value)


def test_a_password_that_a_server_repeats_is_not_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A server without AUTH quotes the password, and so does Python: errors, log and tracebacks of ours do not."""
    server = RedisServer(tmp_path, "--rename-command", "AUTH", "LOGIN")
    try:
        for user in ("", SECRET):
            url = f"redis://{user}:{SECRET}@127.0.0.1:{server.port}/0?protocol=2"
            unspeakable = redis.Redis(port=server.port, username=user, password=SECRET + "\udce9", protocol=2)
            for client, reason in ((url, "unknown command"), (redis.Redis.from_url(url), "unknown"), (unspeakable, "encode")):
                pdc.setup(redis=client, journal=False)
                pdc.Counter("hits", "Hits.", registry=CollectorRegistry()).inc()
                with pytest.raises(StorageError, match=reason) as raised:
                    pdc.flush()
                text = "".join(traceback.format_exception(raised.value)) + Scrape().answer().body.decode()
                assert SECRET not in text
                pdc.shutdown()
    finally:
        server.stop()
    assert SECRET not in caplog.text

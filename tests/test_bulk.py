"""Without hiredis: commands are packed, and long replies are read, in bulk, and are the same as redis-py makes them."""

from __future__ import annotations

import random
import socket
import threading
from typing import Any

import pytest
import redis
from conftest import RedisServer
from helpers import set_constants
from redis.utils import HIREDIS_AVAILABLE

from pdc.storage import Batch, Kind, Operation, Update
from pdc.storage.redis import RedisStorage
from pdc.storage.redis import client as clients
from pdc.storage.redis.bulk import LEAST, PARSERS, Packer
from pdc.storage.redis.commands import Repeated

STRINGS = [b"", b"0", b"_", b"$-1", b"my_", b"a\r\nb", b"\r\n", b"\0", b"\n", b"\r", b"$1\r\n\0", b"{}" * 400, "é".encode()]


class Connection:
    """The parts of a connection that a parser looks at."""

    socket_timeout = 5.0
    encoder = redis.Connection().encoder

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock


def spelled(reply: Any, missing: bytes) -> bytes:
    """The reply as the server sends it."""
    if reply is None:
        return missing + b"\r\n"
    if isinstance(reply, int):
        return b":%d\r\n" % reply
    if isinstance(reply, bytes):
        return b"$%d\r\n%b\r\n" % (len(reply), reply)
    if isinstance(reply, dict):
        return b"%%%d\r\n" % len(reply) + b"".join(spelled(each, missing) for pair in reply.items() for each in pair)
    return b"*%d\r\n" % len(reply) + b"".join(spelled(each, missing) for each in reply)


def replies(numbers: random.Random, *, has_maps: bool) -> list[Any]:
    """Replies to commands in a row: strings, with some that look like other lines, missing values, numbers, and arrays."""
    plain = [b"field %d" % number for number in range(60)]
    array: list[Any] = [*plain, *numbers.choices([*STRINGS, None], k=numbers.randrange(3) * 20)]
    numbers.shuffle(array)
    ends: list[Any] = [[b"17", plain], [*plain, None, None, 3, plain], [1] * LEAST, [None] * LEAST, [plain, None], b"last"]
    mapping = dict.fromkeys(plain, b"_") if has_maps else plain
    return [plain, array, array[:LEAST], mapping, *numbers.sample(ends, len(ends))]


@pytest.mark.parametrize("parser", [*PARSERS], ids=["RESP2", "RESP3"])
def test_replies_are_those_of_redis_py(parser: Any) -> None:
    """Any replies, also nested ones and ones that arrive in pieces, are what the parser of redis-py makes of them."""
    for seed in range(12):
        numbers = random.Random(seed)
        missing = PARSERS[parser].missing
        expected = replies(numbers, has_maps=missing == b"_")
        data = b"".join(spelled(reply, missing) for reply in expected)
        ours, theirs = socket.socketpair()
        bulk = PARSERS[parser](socket_read_size=numbers.choice([7, 100, 1000, 65536]))
        bulk.on_connect(Connection(ours))
        sender = threading.Thread(target=_send, args=(theirs, data, numbers))
        sender.start()
        found = [bulk.read_response() for _ in expected]
        sender.join()
        bulk.on_disconnect()
        ours.close()
        theirs.close()
        assert found == expected


def _send(sock: socket.socket, data: bytes, numbers: random.Random) -> None:
    while data:
        size = numbers.choice([1, 50, 3000])
        sock.sendall(data[:size])
        data = data[size:]


def test_a_command_is_packed_as_by_redis_py() -> None:
    """The words of a command may be texts, bytes and numbers, and the first one two words."""
    connection = redis.Connection(command_packer=Packer())
    expected = redis.connection.PythonRespSerializer(6000, connection.encoder.encode)
    for words in (
        ("HMGET", "key", "é", "", "a\r\nb"),
        ("SCRIPT LOAD", "return 1"),
        ("SELECT", 3),
        ("AUTH", b"\xff", "p"),
        ("X", Kind.ADD),
    ):
        assert b"".join(connection.pack_command(*words)) == b"".join(expected.pack(*words))


@pytest.mark.parametrize("has_hiredis", [True, False])
def test_a_command_that_is_sent_again_is_packed_once(has_hiredis: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that keeps its bytes is sent as any other one, with and without hiredis, and the second time as it was kept."""
    monkeypatch.setattr("pdc.storage.redis.client.HIREDIS_AVAILABLE", has_hiredis and HIREDIS_AVAILABLE)
    connection = redis.Connection(command_packer=Packer())
    repeated, other = Repeated(("HMGET", "key", "é")), ("TIME",)
    expected = b"".join(connection.pack_commands([other, repeated, other]))
    assert b"".join(clients.packed(connection, [other, repeated, other])) == expected
    repeated.packed = b"kept"
    assert clients.packed(connection, [repeated]) == [b"kept"]


@pytest.mark.parametrize("parser", [*PARSERS], ids=["RESP2", "RESP3"])
def test_a_storage_without_hiredis_reads_in_bulk(
    redis_server: RedisServer, parser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics of any size, also with line ends in a value, are read in bulk and are the same as with hiredis."""
    options: dict[str, Any] = {"parser_class": parser, "protocol": 3 if PARSERS[parser].missing == b"_" else 2}
    set_constants(monkeypatch, MOST_READ=200, MOST_FIELDS=200)
    with redis_server.client() as client:
        storage = RedisStorage(redis.Redis.from_url(redis_server.url, **options), "test")
        other = RedisStorage(redis_server.url, "test")
        observed = [Operation(Kind.ADD, f'_bucket:{{"le":"+Inf","user":"{user}"}}', 1.0) for user in range(300)]
        sums = [Operation(Kind.ADD, f'_sum:{{"user":"{user}"}}', 2.0) for user in range(300)]
        more = [Operation(Kind.SET, "_info:{}", 'a\r\n"b"\r\n')]
        for sequence, operations in enumerate((observed, sums, more), 1):
            storage.apply(Batch("1-a", sequence, [Update("m", '{"name":"m"}', operations)]))
        client.hset("prometheus_test_m", mapping={f'_sum:{{"z":"{number}"}}': "1" for number in range(700)})
        assert storage.read().metrics["m"].items() == other.read().metrics["m"].items()
        assert type(storage.server._connection._parser) is PARSERS[parser]
        storage.close()
        other.close()

"""The files of journals: their folder, room, descriptors, locks and users."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, RedisServer, wait_until
from helpers import Run, in_threads, shown
from journals import Journal
from prometheus_client import CollectorRegistry

import pdc
from pdc.delivery.journal import default_folders
from pdc.delivery.journal.layout import OWNER, REPLAYED
from pdc.delivery.journal.writer import Journal as Writer
from pdc.process.files import Descriptor, close_mappings


def test_a_start_removes_unused_journals(
    journal: Journal, tmp_path: Path, caplog: pytest.LogCaptureFixture, registry: CollectorRegistry
) -> None:
    """At start-up unused journals older than 30 days go, with one line in the log; younger, locked and other files stay."""
    for _ in range(3):
        journal.leave('hits.labels("/").inc()', redis_prefix="gone" if "redis" in journal.options else "")
    old, older, young = sorted(journal.folder.iterdir())
    for number, path in enumerate((old, older, young)):
        path.rename(path.with_name(f"{number:016x}{path.name[16:]}"))  # of a storage without users
    old, older, young = sorted(journal.folder.iterdir())
    older = older.rename(older.with_suffix(".damaged"))
    (locked := journal.folder / "locked.journal").touch()
    (foreign := journal.folder / "notes.txt").touch()
    for path in (old, older, locked, foreign):
        os.utime(path, (0, time.time() - 31 * 86400))
    with locked.open() as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        pdc.setup(sqlite=tmp_path / "another.db", journal=journal.folder)
        pdc.Counter("hits", "Hits.", registry=registry).inc()
        pdc.flush()
    assert sorted(journal.folder.iterdir()) == sorted([young, locked, foreign])
    message = f"2 journals of metrics are removed, since nobody has sent them for 30 days: {journal.folder}"
    assert caplog.messages == [message]


@pytest.mark.parametrize("interval", [0, 0.05])
def test_without_a_folder_for_temporary_files_all_is_in_memory(
    run_script: Run, redis_server: RedisServer, interval: float
) -> None:
    """Without a writable folder, as on a read-only root, an application counts; the log gives the reason once."""
    source = f"""
import logging, os, time

os.access = lambda *_, **__: False
logging.getLogger("pdc").setLevel(logging.INFO)
setup(flush_interval={interval})
hits = pdc.Counter("hits", "Hits.")
hits.inc()
pdc.get_redis_conn().close()
for _ in range(3):
    time.sleep(0.06)
    hits.inc()
pdc.flush()
print(pdc.generate_latest().decode())
"""
    done = run_script(source, storage={"redis": redis_server.url, "redis_prefix": "shop"})
    assert "hits_total 4.0" in done.stdout
    warning = (
        "there is no journal, updates that are not sent yet go with the process when it is killed: [Errno 2] no folder for"
    )
    assert done.stderr.count(warning) == (1 if interval else 0)
    assert len(done.stderr.splitlines()) == (1 if interval else 0)


def test_no_folder_after_that_for_temporary_files_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, which may be on a disk that does not answer, is left alone where another one may be written."""
    looked_at: list[Path] = []

    def note(path: Path, *args: Any, **more: Any) -> bool:
        looked_at.append(path)
        return access(path, *args, **more)

    access = os.access
    monkeypatch.setattr(os, "access", note)
    monkeypatch.setattr(os, "supports_effective_ids", {note})
    assert default_folders()[-1].parent == Path(tempfile.gettempdir())
    assert looked_at == [Path(tempfile.gettempdir())]


def test_a_journal_grows_with_its_series(journal: Journal) -> None:
    """Thousands of series and labels longer than a page of memory are all in the journal."""
    journal.leave("""
        for number in range(3000):
            hits.labels(str(number)).inc(number)
        hits.labels("x" * 200_000).inc(7)
        """)
    found = journal.send()
    assert found.pop(("x" * 200_000,)) == 7.0
    found.pop(("0",), None)  # it counted no update
    assert found == {(str(number),): float(number) for number in range(1, 3000)}


def test_series_that_are_removed_leave_the_journal(journal: Journal) -> None:
    """A removed series is not sent, its room is used again, and updates of its child count nothing."""
    journal.leave(
        """
        for number in range(4000):
            child = hits.labels("/")
            child.inc()
            hits.remove("/")
            child.inc()
        pdc.flush()
        hits.labels("/a").inc(2)
        child.inc()
        size = 512 * sum(path.stat().st_blocks for path in __import__("pathlib").Path(os.environ["JOURNALS"]).iterdir())
        """.replace('os.environ["JOURNALS"]', repr(str(journal.folder)))
        + "assert size <= 4096, size"
    )
    assert journal.send() == {("/a",): 2.0}


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: b"pdcjrnl2" + content[8:], "expected a file that starts with"),
        (lambda content: content[:300], "bytes, got 300"),
        (lambda content: content[:8] + b"\xff" * 56 + content[64:], "expected 18446744073709551615 bytes"),
        (lambda content: content[: OWNER.stop] + b"\xff" * 64 + content[OWNER.stop + 64 :], "impossible size"),
        (lambda content: content.replace(b"path", b"pa\xff\xff"), "says"),
    ],
    ids=["later version", "truncated", "overwritten header", "overwritten", "no JSON"],
)
def test_a_journal_that_cannot_be_read_is_set_aside(
    journal: Journal, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes], reason: str
) -> None:
    """A file that is no journal, or not a whole one, is renamed and logged; nothing of it is sent, and others are."""
    journal.leave('hits.labels("/").inc(5)\nhits.labels("/b").inc(6)')
    (path,) = [path for path in journal.folder.iterdir() if b"hits" in path.read_bytes()]
    path.write_bytes(damage(path.read_bytes()))
    messages = journal.leave('hits.labels("/").inc(7)\npdc.flush()').splitlines()
    assert journal.send() == {("/",): 7.0}
    assert journal.files == [".damaged"]
    (message,) = [message for message in messages + caplog.messages if "set aside" in message]
    assert reason in message


def test_without_a_folder_updates_are_in_memory(journal: Journal) -> None:
    """Where the folder cannot be made or is another user's, the log reports it once, and updates are sent as before."""
    journal.folder.write_text("no folder")
    messages = journal.leave('hits.labels("/").inc(5)\npdc.flush()')
    assert (
        messages.count("there is no journal") == messages.count("; setup(journal=...) or PDC_JOURNAL names another folder") == 1
    )
    journal.folder.unlink()
    journal.folder.mkdir()
    journal.folder.chmod(0o777)
    assert "only its owner may write" in journal.leave('hits.labels("/").inc(5)\npdc.flush()')
    assert journal.send() == {("/",): 10.0}


def test_a_journal_takes_few_descriptors_and_little_room(journal: Journal) -> None:
    """Thousands of histograms use a handful of descriptors; a journal of one series uses two pages on the disk at most."""
    journal.leave(
        """
        hits.labels("/").inc()
        pdc.flush()
        def used():
            return len(os.listdir("/dev/fd"))
        before, room = used(), sum(entry.stat().st_blocks for entry in os.scandir(FOLDER))
        wait = pdc.Histogram("wait", "Wait.", ["path"], buckets=range(500))
        for number in range(380):
            wait.labels(number).observe(number)
        assert room * 512 <= 8192, room
        assert used() <= before + 3, (before, used())
        """.replace("FOLDER", repr(str(journal.folder)))
    )
    journal.send()
    assert 'wait_count{path="379"} 1.0' in pdc.generate_latest().decode()


@pytest.mark.parametrize(
    "limit", ["FSIZE, (300_000, 300_000)", "AS, (size() + 3_000_000,) * 2", "AS, (size() + 5_000_000,) * 2"]
)
def test_limits_of_files_and_memory_make_a_smaller_journal(journal: Journal, limit: str) -> None:
    """A limit on the length of a file or on memory makes the journal shorter; the application has half of the memory."""
    messages = journal.leave(f"""
        import resource
        def size():
            return 4096 * int(open("/proc/self/statm").read().split()[0])
        pdc.shutdown()
        resource.setrlimit(resource.RLIMIT_{limit})
        setup(flush_interval=600)
        for number in range(1000):
            hits.labels(str(number)).inc()
        """)
    assert len(journal.send()) == 1000
    assert "no journal" not in messages


def test_a_full_disk_leaves_updates_in_memory(journal: Journal) -> None:
    """Series without room in the journal are sent as before."""
    messages = journal.leave("""
        import errno
        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")
        hits.labels("/").inc()
        os.posix_fallocate = full
        for number in range(1000):
            hits.labels(str(number)).inc()
        pdc.flush()
        """)
    assert len(journal.send()) == 1001
    assert messages.count("No space left") == 1


NEWLINE = "\n"
FULL_DISK = """
import errno
def down(_):
    raise pdc.StorageError("the storage is down")
def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
pdc.config.DEFAULT.storage.apply = down
hits.labels("/").inc()
reserve, os.posix_fallocate = os.posix_fallocate, full
for number in range(1000):
    hits.labels(str(number)).inc()
"""
"""The beginning of a program whose storage is down, and in whose journal only some of 1,001 series have room."""


@pytest.mark.parametrize(
    "end",
    ["pdc.config.flush_before_end(60)", "pdc.shutdown()", "pdc.config.DEFAULT._work.leave_to_journal()"],
    ids=["killed after another try", "at the end", "at an end that the storage holds up"],
)
def test_room_that_there_is_again_is_used(journal: Journal, end: str) -> None:
    """Where a disk was full during an outage, the journal takes the rest with the next try, and at the end."""
    messages = journal.leave(f"{FULL_DISK}\nos.posix_fallocate = reserve\n{end}")
    assert len(journal.send()) == 1001
    assert "had no room" not in messages


def test_the_end_names_what_had_no_room(journal: Journal) -> None:
    """At the end of a process the log says how many series are lost, as the journal had no room for them until then."""
    messages = journal.leave(f"{FULL_DISK}\npdc.shutdown()")
    (lost,) = re.findall(r"^(\d+) series or removals had no room in the journal and are lost$", messages, re.MULTILINE)
    assert 0 < int(lost) < 1001
    assert len(journal.send()) == 1001 - int(lost)


@pytest.mark.parametrize("change", ["hits.remove('a')", "hits.labels('a').reset()"])
@pytest.mark.parametrize("end", ["flush", "shutdown"])
def test_a_removal_that_had_no_room_goes_before_later_counts(journal: Journal, change: str, end: str) -> None:
    """A series that goes on after its removal keeps its counts, also where there was room for these before."""
    journal.leave(f"""
        hits.labels("a").inc(10)
        pdc.flush()
        {FULL_DISK.replace(NEWLINE, NEWLINE + " " * 8)}
        {change}
        hits.labels("a").inc(3)
        os.posix_fallocate = reserve
        try:
            pdc.{end}()
        except pdc.StorageError:
            pass
        """)
    assert journal.send()["a",] == 3.0


def test_a_native_series_that_was_removed_stays_away(journal: Journal) -> None:
    """Also where a part of it, of before its window grew, waits for its batch while the journal takes the rest."""
    journal.leave(f"""
        sizes = pdc.Histogram("sizes", "Sizes.", ["path"], buckets=(), native=True)
        {FULL_DISK.replace(NEWLINE, NEWLINE + " " * 8)}
        try:
            pdc.flush()
        except pdc.StorageError:
            pass
        sizes.labels("a").observe(1e6)
        sizes.labels("a").observe(0.001)
        sizes.remove("a")
        os.posix_fallocate = reserve
        pdc.config.DEFAULT._work.journal._next_try = 0.0
        try:
            pdc.flush()
        except pdc.StorageError:
            pass
        """)
    assert len(journal.send()) == 1001
    assert "sizes_count" not in pdc.generate_latest().decode()


def test_an_exception_of_a_handler_leaves_the_journal_incomplete(journal: Journal) -> None:
    """A time limit amid the work of a journal that has room again is raised, and the next try takes the rest."""
    journal.leave(f"""
        {FULL_DISK.replace(NEWLINE, NEWLINE + " " * 8)}
        def limit(*_):
            raise TimeoutError
        signal.signal(signal.SIGALRM, limit)
        def expiring(*arguments):
            os.posix_fallocate = reserve
            signal.raise_signal(signal.SIGALRM)
        os.posix_fallocate = expiring
        for expected in (TimeoutError, pdc.StorageError):
            try:
                pdc.flush()
            except expected:
                pass
            else:
                os._exit(1)
        """)
    assert len(journal.send()) == 1001


def test_a_journal_that_had_no_room_tries_again(journal: Journal) -> None:
    """After a moment without room, also while the storage answers, the journal takes new series again."""
    journal.leave(f"""
        {FULL_DISK.replace(NEWLINE, NEWLINE + " " * 8)}
        os.posix_fallocate = reserve
        del pdc.config.DEFAULT.storage.apply
        pdc.flush()
        hits.labels("/new").inc()
        """)
    assert journal.send()["/new",] == 1.0


@pytest.mark.parametrize("change", ["remove('a')", "labels('a').reset()", "clear()"])
def test_a_journal_with_room_reports_no_loss(journal: Journal, change: str) -> None:
    """Series that were removed or reset in an outage are in the journal, or need none."""
    messages = journal.leave(f"""
        hits.labels("a").inc(10)
        pdc.flush()
        def down(_):
            raise pdc.StorageError("the storage is down")
        build = pdc.Info("build", "Build.", ["path"])
        build.labels("a").info({{"version": "1"}})
        pdc.flush()
        pdc.config.DEFAULT.storage.apply = down
        hits.labels("a").inc()
        build.labels("a").info({{"version": "2"}})
        pdc.Gauge("live", "Now.", multiprocess_mode="livesum").set(3)
        try:
            pdc.flush()
        except pdc.StorageError:
            pass
        hits.{change}
        build.remove("a")
        pdc.shutdown()
        """)
    assert "wait in" in messages
    assert "no room" not in messages


def test_a_journal_that_is_taken_over_reports_what_had_no_room(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where another process sends the journal of a living one, the log counts the series that it lacks."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    pdc.setup(**journal.options, flush_interval=600)
    hits = pdc.Counter("hits", "Hits.", ["path"], registry=CollectorRegistry())
    hits.labels("/in").inc()
    monkeypatch.setattr(Writer, "_room", full)
    hits.labels("/out").inc(2)
    journals = pdc.config.DEFAULT._work.journal._journals
    assert journals is not None
    assert journals.own is not None
    journals.own._header[REPLAYED] = 1
    pdc.flush()
    assert shown()['hits_total{path="/in"}'] == 1.0
    assert "1 series or removals had no room in the journal and are lost" in caplog.messages


def test_a_journal_that_cannot_begin_leaves_no_file(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where no descriptor is free."""

    def none_free(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    journal.folder.mkdir(mode=0o700)
    pdc.setup(**journal.options, flush_interval=600)
    monkeypatch.setattr(Descriptor, "map", none_free)
    monkeypatch.setattr("pdc.delivery.journal.writer.own_folder", none_free)
    pdc.Counter("hits", "Hits.", registry=CollectorRegistry()).inc()
    assert journal.files == []


def test_file_systems_that_cannot_reserve_room_are_written_to(journal: Journal) -> None:
    """Where `posix_fallocate` does not exist or is not supported, zeros are written."""
    for missing in ("del os.posix_fallocate", "os.posix_fallocate = unsupported"):
        journal.leave(f"""
            import errno
            def unsupported(*_):
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")
            {missing}
            for number in range(100):
                hits.labels(str(number)).inc()
            """)
    assert set(journal.send().values()) == {2.0}


def test_descriptors_that_others_close_are_theirs(journal: Journal) -> None:
    """A program that closes all descriptors keeps the files that get their numbers, and no update counts twice."""
    journal.leave(f"""
        import gc, subprocess, sys, time
        pdc.flush()
        time.sleep(0.3)  # the thread that flushes has begun to wait
        hits.labels("/").inc(5)
        os.closerange(3, 64)
        os.close(0)
        files = [open(f"mine{{number}}", "w+") for number in range(40)]
        for number, file in enumerate(files):
            print(number, file=file, flush=True)
        other = "import pdc; pdc.setup(**{journal.options!r}); pdc.flush()"
        subprocess.run([sys.executable, "-c", other], check=True)
        for number in range(2000):
            hits.labels(str(number)).inc(7)
        if os.fork() == 0:
            hits.labels("child").inc(7)
            pdc.shutdown()
            os._exit(0)
        assert os.wait()[1] == 0
        setup(flush_interval=600)
        gc.collect()
        hits.labels("/").inc(2)
        subprocess.run([sys.executable, "-c", other], check=True)
        for number, file in enumerate(files):
            print("end", file=file, flush=True)
            file.seek(0)
            assert file.read() == f"{{number}}\\nend\\n", number
        """)
    found = journal.send()
    assert found.pop(("/",)) == 7.0
    assert found == {(name,): 7.0 for name in [*map(str, range(2000)), "child"]}


@pytest.mark.parametrize("detach", [True, False])
def test_a_daemon_counts_exactly(journal: Journal, tmp_path: Path, detach: bool) -> None:
    """python-daemon closes all descriptors, again and again other processes look for journals, and each update counts once."""
    source = f"""
import os, pathlib, time, daemon, pdc
pdc.setup(**{ {**journal.options, "flush_interval": 0.05}!r})
hits = pdc.Counter("hits", "Hits.", ["path"]).labels("/")
for _ in range(100):
    hits.inc()
pdc.flush()
time.sleep(0.2)  # no send is under way, whose descriptors must stay open
log = open("log", "w")
with daemon.DaemonContext(detach_process={detach}, working_directory={str(tmp_path)!r}, stderr=log, stdout=log):
    mine = open("mine", "w")
    for number in range(1000):
        hits.inc()
        print(number, file=mine)
        if number % 100 == 0:
            mine.flush()
            time.sleep(0.02)
    pdc.shutdown()
    mine.close()
    pathlib.Path("done").touch()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", source], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE
    )

    def done() -> bool:
        pdc.config.DEFAULT._work.replay_due = True
        pdc.flush()
        return (tmp_path / "done").exists()

    pdc.setup(**journal.options)
    wait_until(done)
    _, errors = process.communicate()
    assert errors == b""
    assert (tmp_path / "mine").read_text().split() == list(map(str, range(1000)))
    lost = "SQLite would write to the files that have their numbers now"
    assert (lost in (tmp_path / "log").read_text()) == ("sqlite" in journal.options and not detach)
    assert journal.send() == {("/",): 1100.0}
    assert journal.files == []


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_journal_that_is_deleted_is_begun_anew(journal: Journal, what: str) -> None:
    """A journal that a cleaner deleted while its process lives is written again with the next batch, with pending updates."""
    delete = f"""
        import pathlib, shutil
        def delete():
            for path in pathlib.Path({str(journal.folder)!r}).iterdir():
                path.unlink()
            if {what == "folder"}:
                shutil.rmtree(path.parent)
        """
    journal.leave(f"""{delete}
        hits.labels("/").inc(5)
        delete()
        pdc.flush()
        hits.labels("/").inc(7)
        hits.labels("/new").inc(8)
        """)
    assert journal.send() == {("/",): 12.0, ("/new",): 8.0}
    messages = journal.leave(f"""{delete}
        def fail(batch):
            raise pdc.StorageError("the storage is down")
        pdc.config.DEFAULT.storage.apply = fail
        hits.labels("/").inc(1)
        delete()
        pdc.shutdown()
        """)
    (path,) = journal.folder.iterdir()
    assert f"wait in {path} for the next process" in messages
    assert journal.send() == {("/",): 13.0, ("/new",): 8.0}


def test_threads_that_close_journals_at_once(
    tmp_path: Path, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each buffer has a journal of its own, and closes what others left open; another one may have closed it meanwhile."""
    pdc.setup(sqlite=tmp_path / "metrics.db", flush_interval=3600, journal=tmp_path / "journals")
    pdc.Counter("hits", "Hits.", registry=registry).inc()
    pdc.shutdown()  # the cell had its numbers there
    status = Descriptor.status

    def close_in_another_thread(self: Descriptor) -> Any:
        monkeypatch.undo()
        found = status(self)
        in_threads(1, close_mappings)
        return found

    monkeypatch.setattr(Descriptor, "status", close_in_another_thread)
    close_mappings()
    assert Descriptor.status is status


def test_a_journal_stays_young(journal: Journal) -> None:
    """The time of a file in use is renewed, so that cleaners of old files spare it."""
    journal.leave(f"""
        hits.labels("/").inc(5)
        (entry,) = os.scandir({str(journal.folder)!r})
        os.utime(entry, (0, 0))
        pdc.delivery.journal.writer.TOUCH_SECONDS = 0
        pdc.flush()
        assert os.stat(entry).st_mtime > 0
        """)


def test_a_file_system_that_becomes_read_only_stops_nothing(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Updates and flushes go on where the time of the file cannot be renewed."""

    def fail(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("pdc.delivery.journal.writer.TOUCH_SECONDS", 0)
    monkeypatch.setattr("os.utime", fail)
    pdc.setup(**journal.options, flush_interval=600)
    hits = pdc.Counter("hits", "Hits.", registry=CollectorRegistry())
    for _ in range(3):
        hits.inc()
        pdc.flush()
    assert shown() == {"hits_total": 3.0}
    assert "Read-only" not in caplog.text


def test_locks_that_fail_stop_nothing(
    journal: Journal, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a journal of a dead process cannot be locked for now, it waits, and everything else is sent."""
    journal.leave('hits.labels("/").inc(5)')

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", fail)
        assert journal.send() == {}
        pdc.Counter("other", "Other.", registry=CollectorRegistry()).inc()
        assert "other_total 1.0" in pdc.generate_latest().decode()
    assert caplog.text.count("cannot be sent for now") == 1
    assert journal.send() == {("/",): 5.0}


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_a_process_that_drops_its_privileges_has_a_journal_of_the_new_user(
    run_script: Run, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Its former journal, which it may no longer remove, has nothing to send and goes with that user's next process."""
    folder = Path(tempfile.gettempdir())
    database = folder / "data" / "metrics.db"
    database.parent.mkdir()
    database.parent.chmod(0o777)
    database.touch()
    database.chmod(0o666)
    options: dict[str, Any] = {"sqlite": {"sqlite": str(database)}, "redis": {"redis": redis_server.url}}[kind]
    source = """
import os, pathlib, signal, tempfile
setup(flush_interval=600)
hits = pdc.Counter("hits", "Hits.")
hits.inc(5)
pdc.flush()
hits.inc(6)
pathlib.Path(tempfile.gettempdir(), f"pdc-{os.geteuid()}").chmod(0o500)
if os.geteuid() == 0:
    os.setuid(65534)
hits.inc(7)
pdc.flush()
hits.inc(8)
"""
    end = "pdc.shutdown()\nprint('ended')"
    assert run_script(source + end, storage=options).stdout == "ended\n"
    former = folder / f"pdc-{os.geteuid()}"
    assert former.stat().st_mode & 0o777 == 0o500
    former.chmod(0o700)
    assert run_script(source + "os.kill(os.getpid(), signal.SIGKILL)", storage=options, check=False).stderr == ""
    send = """
import os
setup()
pdc.generate_latest()  # all modules are imported: the interpreter may be root's only
if os.geteuid() == 0:
    os.setuid(65534)
setup()
pdc.flush()
print(pdc.generate_latest().decode())
"""
    assert "hits_total 52.0" in run_script(send, storage=options).stdout
    former.chmod(0o700)
    monkeypatch.setattr("pdc.delivery.journal.left.BEGIN_SECONDS", -60)
    pdc.setup(**options)
    pdc.flush()
    assert [path for place in folder.glob("pdc-*") for path in place.iterdir()] == []
    assert "hits_total 52.0" in pdc.generate_latest().decode()


def test_a_journal_that_is_about_to_begin_is_not_locked(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that looks for journals leaves the lock of a new file to its owner, which would go without a journal."""
    journal.leave('hits.labels("/").inc()')
    (left,) = journal.folder.iterdir()
    new = left.with_name(f"{left.name.partition('-')[0]}-{time.time_ns():016x}-1-a.journal")
    new.touch(0o600)
    looked, reads = [], os.pread

    def read(number: int, *wanted: int) -> bytes:
        if os.fstat(number).st_ino == new.stat().st_ino:
            with new.open() as owner:
                fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            looked.append(number)
        return reads(number, *wanted)

    monkeypatch.setattr(os, "pread", read)
    assert journal.send() == {("/",): 1.0}
    assert looked
    assert [*journal.folder.iterdir()] == [new]


def test_messages_about_journals_hold_up_no_thread(
    storage: dict[str, Any], registry: CollectorRegistry, tmp_path: Path
) -> None:
    """A handler of the log may wait for threads that update and send while a journal cannot be begun."""
    (tmp_path / "file").touch()
    pdc.setup(**storage, flush_interval=3600, journal=tmp_path / "file" / "journals")
    hits = pdc.Counter("hits", "Hits.", registry=registry)
    ended: list[bool] = []

    class Waiting(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            threads = [threading.Thread(target=work, daemon=True) for work in (hits.inc, pdc.flush)]
            for thread in threads:
                thread.start()
                thread.join(5)
            ended.append(not any(thread.is_alive() for thread in threads))

    handler = Waiting()
    logging.getLogger("pdc").addHandler(handler)
    try:
        hits.inc()
        pdc.flush()
        wait_until(lambda: ended)
    finally:
        logging.getLogger("pdc").removeHandler(handler)
    assert all(ended)

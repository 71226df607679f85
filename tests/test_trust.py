"""Journals guard against other users of the host, damaged files, and another storage of the same name."""

from __future__ import annotations

import os
import signal
import socket
import stat
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from helpers import Run, mainly
from journals import Journal, Model
from prometheus_client import CollectorRegistry

import pdc
from pdc.delivery.journal import Journals, default_folders
from pdc.delivery.journal.layout import MAGIC, WRITTEN
from pdc.process.files import is_shared_safely
from pdc.storage import Batch, Outcome

OTHER = 65534 if os.geteuid() == 0 else os.geteuid()
"""Another user; where the tests do not run as root it is the same one, and its folders are open to all instead."""


def as_other_user(work: Callable[[], object]) -> None:
    """Do the work in a process of another user."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            os.setresuid(OTHER, OTHER, OTHER)
            work()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def bequeath(journal: Journal, work: str) -> Path:
    """Let a process do this work, have it killed, and return its journal."""
    before = set(journal.folder.glob("*.journal"))
    journal.leave(work)
    (path,) = set(journal.folder.glob("*.journal")) - before
    return path


@pytest.mark.parametrize("work", ['hits.labels("/").inc(1_000_000)', 'hits.remove("/")'], ids=["injects", "wipes"])
def test_a_folder_that_another_user_made_first_is_not_used(
    journal: Journal, caplog: pytest.LogCaptureFixture, work: str
) -> None:
    """Files in the predictable place are neither sent nor removed; no file of ours goes there; the log reports it once."""
    path = bequeath(journal, work)
    content, name = path.read_bytes(), path.name
    path.unlink()
    squatted = Path(tempfile.gettempdir(), f"pdc-{os.geteuid()}")

    def squat() -> None:
        squatted.mkdir()
        squatted.chmod(0o777)
        (squatted / name).write_bytes(content)
        (squatted / name).chmod(0o666)

    as_other_user(squat)
    pdc.setup(**{**journal.options, "journal": True, "flush_interval": 600})
    hits = pdc.Counter("hits", "Hits.", ["path"], registry=CollectorRegistry()).labels("/")
    for _ in range(3):
        hits.inc()
        pdc.config.DEFAULT._work.replay_due = True
        pdc.flush()
    assert 'hits_total{path="/"} 3.0' in pdc.generate_latest().decode()
    assert [each.name for each in squatted.iterdir()] == [name]
    assert caplog.text.count("only its owner may write") == 1
    assert f"got {squatted} of user {OTHER}" in caplog.text


def _as_another_users(path: Path) -> None:
    os.chown(path, OTHER, -1)
    path.chmod(0o666)


def _as_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def _as_socket(path: Path) -> None:
    path.unlink()
    home = Path.cwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path.name)
    os.chdir(home)


def _as_link(path: Path) -> None:
    path.rename(path.with_suffix(".elsewhere"))
    path.symlink_to(path.with_suffix(".elsewhere"))


def _as_second_name(path: Path) -> None:
    path.with_suffix(".elsewhere").hardlink_to(path)


def _as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _as_huge(path: Path) -> None:
    with path.open("r+b") as opened:
        opened.truncate(3 << 30)
        opened.seek(8 * WRITTEN)
        opened.write(struct.pack("=Q", 3 << 30))


def _as_overwritten(path: Path) -> None:
    with path.open("r+b") as opened:
        opened.seek(8)
        opened.write(b"\xff" * 8)


def _as_cut(path: Path) -> None:
    os.truncate(path, 400)


def _with_foreign_operation(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"remove","{', b'"remove","x'))


SPOILED = {
    _as_another_users: "expected a regular file",
    _as_fifo: "expected a regular file",
    _as_socket: "No such device or address",
    _as_link: "Too many levels of symbolic links",
    _as_second_name: "with 2 names",
    _as_folder: "Is a directory",
    _as_huge: "expected 3221225472 bytes, got 268435456",
    _as_overwritten: "argument out of range",
    _as_cut: "bytes, got 400",
    _with_foreign_operation: "says b'[0,",
}
"""Each damage of a journal, and the reason in the log."""


@mainly("sqlite")
def test_spoiled_files_are_set_aside_alone(journal: Journal, caplog: pytest.LogCaptureFixture) -> None:
    """Beside damaged journals, of any kind, the others are sent, and updates continue; damaged ones are not read again."""
    paths = {}
    for spoil in SPOILED:
        paths[spoil] = bequeath(journal, 'hits.labels("/b").inc(9)\nhits.remove("/b")')
        spoil(paths[spoil])
    journal.leave('hits.labels("/").inc(5)')
    assert journal.send() == {("/",): 5.0}
    for spoil, path in paths.items():
        assert not path.exists()
        assert path.with_suffix(".damaged").lstat()
        (said,) = [record.getMessage() for record in caplog.records if path.stem in record.getMessage()]
        assert SPOILED[spoil] in said


def test_a_file_that_cannot_be_removed_counts_once(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has nothing more to send, also when the storage has forgotten its writer."""
    path = bequeath(journal, 'hits.labels("/").inc(5)')

    def fail(*_: object, **__: object) -> None:
        raise PermissionError("Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr("os.unlink", fail)
        assert journal.send() == {("/",): 5.0}
    assert path.read_bytes()[: len(MAGIC)] == bytes(len(MAGIC))
    model = Model()
    Journals(journal.folder, "any").replay(model)
    assert model.values == {}
    assert journal.send() == {("/",): 5.0}


def test_a_journal_that_others_cut_does_not_end_its_process(journal: Journal) -> None:
    """Its content is lost, but nothing else: the process continues in another journal."""
    messages = journal.leave(f"""
        hits.labels("/").inc(5)
        pdc.flush()
        (entry,) = os.scandir({str(journal.folder)!r})
        hits.labels("/").inc(100)
        os.truncate(entry, 0)
        pdc.flush()
        hits.labels("/").inc(7)
        hits.labels("/new").inc(8)
        """)
    assert messages.count("was truncated by another program") == 1
    assert journal.send() == {("/",): 12.0, ("/new",): 8.0}


def _elsewhere(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Act as another container: the same names mean another file, another host and another Redis."""
    folder.rename(folder.with_name("here"))
    folder.mkdir()
    name = socket.gethostname()
    monkeypatch.setattr("socket.gethostname", lambda: f"not-{name}")


@pytest.mark.parametrize("reached", [True, False])
def test_another_storage_of_the_same_name_gets_nothing(
    run_script: Run, storage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reached: bool
) -> None:
    """A journal goes only to the storage of its process, found by its id or, if it was never reached, by place."""
    folder = tmp_path / "data"
    folder.mkdir()
    options = {**storage, "sqlite": str(folder / "metrics.db")} if "sqlite" in storage else storage
    journal = Journal(run_script, options, tmp_path / "journals")
    path = bequeath(
        journal,
        f"""
        if {reached}:
            hits.labels("/").inc(0)
            pdc.flush()
        hits.labels("/").inc(1000)
        """,
    )
    with monkeypatch.context() as patch:
        _elsewhere(patch, folder)
        if "redis" in storage:
            with redis.Redis.from_url(storage["redis"]) as client:
                client.rename("prometheus#test", "here") if reached else client.flushall()
                client.delete("prometheus_test_hits")
        pdc.setup(**{**options, "journal": False})
        pdc.Counter("hits", "Hits.", ["path"], registry=CollectorRegistry()).labels("/").inc()
        assert journal.send() == {("/",): 1.0}
        assert path.exists()
        os.utime(path, (0, 0))
        assert journal.send() == {("/",): 1.0}
        assert not path.exists()


@pytest.mark.parametrize("reached", [True, False])
def test_an_empty_storage_gets_what_was_left_at_its_place(journal: Journal, reached: bool) -> None:
    """A Redis that came back without its data, or a new file, continues with the journals of killed processes."""
    path = bequeath(
        journal,
        f"""
        hits.labels("/").inc(7)
        if {reached}:
            pdc.flush()
        hits.labels("/").inc(5)
        """,
    )
    other = bequeath(journal, 'hits.labels("/").inc(6)')
    pdc.setup(**{**journal.options, "journal": False})
    pdc.clear()
    assert pdc.config.DEFAULT.required().id() == ""
    pdc.shutdown()
    assert journal.send() == {("/",): 11.0 if reached else 18.0}
    assert not path.exists()
    assert not other.exists()


def test_the_id_of_a_storage_is_made_by_the_first_write(storage: dict[str, Any]) -> None:
    """A read makes no id; the id stays, also for other processes, until all data is deleted."""
    pdc.setup(**storage)
    assert pdc.generate_latest() == b""
    of = pdc.config.DEFAULT.required()
    assert of.id() == ""
    hits = pdc.Counter("hits", "Hits.", registry=CollectorRegistry())
    first = of.id()
    assert first.startswith("#id:")
    assert len(first) == 32
    pdc.setup(**storage)
    hits.inc()
    assert pdc.config.DEFAULT.required().id() == first
    assert b"#id" not in pdc.generate_latest()
    assert pdc.config.read(pdc.config.DEFAULT, [first]).metrics == {}
    pdc.clear()
    hits.inc()
    assert pdc.config.DEFAULT.required().id() not in ("", first)


def test_the_default_folder_is_one_that_only_this_user_can_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default folder is a private runtime or state folder of XDG, else one of the user's own among temporary files."""
    own = Path(tempfile.gettempdir(), f"pdc-{os.geteuid()}")
    assert default_folders() == [own]
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        folder = tmp_path / name
        folder.mkdir(mode=0o700)
        (tmp_path / f"link-to-{name}").symlink_to(folder)
        for value in ("", "relative", str(tmp_path / "missing"), str(tmp_path / f"link-to-{name}")):
            monkeypatch.setenv(name, value)
            assert default_folders() == [own]
        monkeypatch.setenv(name, str(folder))
        folder.chmod(0o755)
        assert default_folders() == [own]
        folder.chmod(0o700)
        assert default_folders() == [folder / "pdc", own]
        os.chown(folder, OTHER, -1)
        assert (default_folders() == [own]) == (os.geteuid() != OTHER)
        monkeypatch.delenv(name)


def test_journals_in_all_default_folders_are_sent(
    run_script: Run, storage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process with a runtime folder sends the journal of one without, as under cron."""
    source = (
        "import os, signal\nsetup(flush_interval=600)\npdc.Counter('hits', 'Hits.').inc()\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    assert run_script(source, storage=storage, check=False).returncode == -signal.SIGKILL
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    assert run_script(source, storage=storage, check=False).returncode == -signal.SIGKILL
    assert len(list(folder.glob("pdc/*.journal"))) == 1
    assert stat.S_IMODE((folder / "pdc").stat().st_mode) == 0o700
    pdc.setup(**storage)
    pdc.flush()
    assert b"hits_total 2.0" in pdc.generate_latest()


def test_a_temporary_folder_that_others_rule_is_not_used(
    storage: dict[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where another user may move or replace our folder no journal is written, the log reports it once, and all is sent."""
    folder = Path(tempfile.gettempdir())
    assert is_shared_safely(folder)
    user = os.geteuid()
    monkeypatch.setattr("os.geteuid", lambda: user + 1)
    folder.chmod(0o777)
    assert not is_shared_safely(folder)
    pdc.setup(**storage, flush_interval=600)
    hits = pdc.Counter("hits", "Hits.", registry=CollectorRegistry())
    for _ in range(2):
        hits.inc()
        pdc.flush()
    assert list(folder.iterdir()) == []
    assert caplog.text.count(f"expected {folder} to be sticky") == 1
    assert b"hits_total 2.0" in pdc.generate_latest()


def test_a_storage_that_fails_stops_the_rest_of_the_journals(tmp_path: Path) -> None:
    """Only an error of the storage stops them, and the unsent updates stay."""
    journals, model, sent = Journals(tmp_path, "model"), Model(), []
    for writer in ("1-a", "2-b"):
        journals.open(writer, 0, in_flight=False)
        journals.close(keep=True)

    def apply(batch: Batch) -> Outcome:
        sent.append(batch.writer)
        raise pdc.StorageError("down")

    model.apply = apply  # type: ignore[method-assign]  # a storage that is down
    with pytest.raises(pdc.StorageError):
        journals.replay(model)
    assert sent == ["1-a"]
    assert [path.stem[-3:] for path in tmp_path.iterdir()] == ["2-b"]


def test_workers_that_drop_their_privileges_leave_no_files(run_script: Run, storage: dict[str, Any]) -> None:
    """A master loads the application as root, its workers become another user: no call fails, and no journal stays."""
    folder = Path(tempfile.gettempdir())
    if "sqlite" in storage:
        storage = {"sqlite": str(folder / "data" / "metrics.db")}
        (folder / "data").mkdir()
        (folder / "data").chmod(0o777)
    source = f"""
import encodings.idna, os, tempfile  # now, as the interpreter may be root's only
setup(flush_interval=600)
hits = pdc.Counter("hits", "Hits.")
for _ in range(2):
    if (child := os.fork()) == 0:
        os.setresuid({OTHER}, {OTHER}, {OTHER})
        hits.inc()
        print(len(os.listdir(tempfile.gettempdir() + "/pdc-{OTHER}")))
        pdc.shutdown()
        raise SystemExit
    assert os.waitpid(child, 0)[1] == 0
pdc.shutdown()
"""
    done = run_script(source, storage=storage)
    assert done.stdout.split() == ["1", "1"]
    assert done.stderr == ""
    assert list(folder.glob("pdc-*/*")) == []
    pdc.setup(**storage)
    assert b"hits_total 2.0" in pdc.generate_latest()

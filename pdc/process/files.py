"""Files that stay ours.

A daemon closes all descriptors of the process, and the next files that it opens get their numbers.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .interruption import let_through, tolerate

try:
    import fcntl
    import resource
except ImportError:  # Windows
    HAS_LOCKS = False
else:
    HAS_LOCKS = True
"""Journals need locks of POSIX, which show that a process lives."""

DEAD = (b"Z", b"X", b"x")
"""The states in `/proc` of a process that has ended; its parent has not asked for its status yet."""


class Descriptor:
    """The number of an open file. It is used only while it stands for that file."""

    def __init__(self, number: int, file: tuple[int, int] | None = None) -> None:
        self.number = number
        self._file = file or _file(os.fstat(number))

    @classmethod
    def open(cls, path: Path, flags: int, folder: Descriptor | None = None) -> Descriptor:
        """Open the file, by its name within the folder if one is given. Follow no link, and wait for no FIFO.

        The number is never 0, 1 or 2: where these are free, the application may still print to them. Raises OSError.
        """
        flags |= os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        if folder is None:
            number = os.open(path, flags, 0o600)
        else:
            number = os.open(path.name, flags, 0o600, dir_fd=folder.required())
        if number <= 2:
            low, number = number, fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)
            os.close(low)
        return cls(number)

    @classmethod
    def sentinel(cls) -> Descriptor:
        """A descriptor of a pipe that nobody uses. While it is there, the descriptors opened with it were not all closed."""
        reader, writer = os.pipe()
        os.close(writer)
        return cls(reader)

    def status(self) -> os.stat_result | None:
        """The status of the file; None where the number is no longer ours."""
        try:
            status = os.fstat(self.number)
        except OSError as error:
            let_through(error)
            return None
        return status if _file(status) == self._file else None

    def required(self) -> int:
        """The number. Raises OSError where it is no longer ours."""
        if self.status() is None:
            raise OSError(errno.EBADF, f"expected descriptor {self.number} to be the file that was opened, others closed it")
        return self.number

    def same(self, status: os.stat_result) -> bool:
        """Compare with the status of another file: true where it is the same one."""
        return _file(status) == self._file

    def lock(self) -> None:
        """Take the lock of the file for this process. Raises BlockingIOError where another one has it, and OSError."""
        fcntl.flock(self.required(), fcntl.LOCK_EX | fcntl.LOCK_NB)

    def reserve(self, start: int, end: int) -> None:
        """Reserve room on the disk for these bytes: on a full one, a store to a mapping ends the process. Raises OSError."""
        number = self.required()
        try:
            os.posix_fallocate(number, start, end - start)
        except AttributeError:  # macOS
            os.pwrite(number, bytes(end - start), start)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            os.pwrite(number, bytes(end - start), start)

    def map(self, path: Path, start: int, end: int) -> mmap.mmap:
        """Map these bytes of the file at that path into memory. Raises OSError.

        The file is opened once more for the mapping. A child inherits that opening, and must not inherit the lock with it.
        """
        own = Descriptor.open(path, os.O_RDWR)
        try:
            if not self.same(os.fstat(own.number)):
                raise OSError(errno.ESTALE, f"expected {path} to be the file that was opened, another one is there")
            if sys.version_info >= (3, 13):
                return mmap.mmap(own.number, end - start, offset=start, trackfd=False)
            return _tracked(own, start, end)
        finally:
            own.close()

    def close(self) -> None:
        """Close the file, unless others closed it."""
        if self.status() is not None:
            os.close(self.number)
        self.number = -1


def is_root() -> bool:
    """True for root: it may write the files of others, and makes files that others may not write."""
    return HAS_LOCKS and os.geteuid() == 0


def _file(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


@contextmanager
def own_folder(path: Path, *, make: bool = False) -> Iterator[Descriptor]:
    """Open a folder that only this user may write, for files by their names in it; `make` it where it does not exist.

    Raises OSError, also for a folder that others may write.
    """
    try:
        folder = Descriptor.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError as error:
        let_through(error)
        if not make:
            raise
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Descriptor.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = os.fstat(folder.number)
        if found.st_uid != os.geteuid() or found.st_mode & 0o022:
            raise PermissionError(
                f"expected a folder of user {os.geteuid()} that only its owner may write (chmod 700), got {path} of user "
                f"{found.st_uid} with mode {stat.S_IMODE(found.st_mode):o}"
            )
        yield folder
    finally:
        folder.close()


def is_private(folder: Path) -> bool:
    """True for a folder of this user that nobody else may enter."""
    try:
        found = folder.lstat()
    except OSError as error:
        let_through(error)
        return False
    return folder.is_absolute() and stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def temporary_folder() -> Path | None:
    """The folder for temporary files, as `tempfile` finds it; None where this user may write no such folder.

    The search of that module has a lock, which a handler of a signal could leave held. No folder after the one that it finds
    is looked at: the current one may be on a disk that does not answer.
    """
    chosen = getattr(sys.modules.get("tempfile"), "tempdir", None)
    named = [os.fsdecode(chosen)] if chosen else [os.environ.get(name, "") for name in ("TMPDIR", "TEMP", "TMP")]
    usual = "/tmp", "/var/tmp", "/usr/tmp"  # noqa: S108 - journals go to private folders in them
    folders = [Path(each) for each in (*named, *usual) if each]
    with tolerate(OSError):  # the current folder was removed
        here = Path.cwd()
        folders = [here / each for each in (*folders, here)]
    own = os.access in os.supports_effective_ids
    found = (each for each in folders if os.access(each, os.W_OK | os.X_OK, effective_ids=own))
    return next((each for each in found if each.is_absolute() and each.is_dir()), None)


def is_shared_safely(folder: Path) -> bool:
    """True where only root can take away files of this user: the folder is sticky, or nobody else may write it."""
    found = folder.stat()
    mine = found.st_uid == os.geteuid()
    return mine or (found.st_uid == 0 and (bool(found.st_mode & stat.S_ISVTX) or not found.st_mode & 0o022))


def expect_own_file(status: os.stat_result) -> None:
    """Raise PermissionError for anything but a file of this user which nobody else may write, and which has one name."""
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or mode & 0o022 or status.st_nlink > 1:
        raise PermissionError(
            f"expected a regular file of user {os.geteuid()} with one name that only its owner may write, got a "
            f"{stat.filemode(status.st_mode)} of user {status.st_uid} with {status.st_nlink} names"
        )


_mappings: dict[int, tuple[mmap.mmap, Descriptor]] = {}
"""Mappings with their descriptors, which they keep open before Python 3.13."""


def _tracked(own: Descriptor, start: int, end: int) -> mmap.mmap:
    """Map a file, and note the descriptor that the mapping opens for itself: the lowest free number, though not 0 to 2."""
    held = [os.dup(own.number)]
    while held[-1] <= 2:
        held.append(os.dup(own.number))
    number = held.pop()
    os.close(number)
    try:
        mapping = mmap.mmap(own.number, end - start, offset=start)
    finally:
        for low in held:
            os.close(low)
    _mappings[id(mapping)] = mapping, Descriptor(number, _file(os.fstat(own.number)))
    return mapping


def close_mappings() -> None:
    """Close the mappings that no cell uses, as other threads may do meanwhile.

    A mapping whose descriptor others closed stays for ever.
    """
    for key, (mapping, descriptor) in list(_mappings.items()):
        if descriptor.status() is None:
            keep_for_ever(mapping)
            _mappings.pop(key, None)
        else:
            with tolerate(BufferError):  # a cell has its numbers there
                mapping.close()
                _mappings.pop(key, None)


def longest_file() -> int:
    """The longest file that this process may write; a longer one may end the process with a signal."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def keep_for_ever(owner: object) -> None:
    """Keep an object, also at exit, that would close a number which stands for another file by now."""
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(owner))


def life(pid: int) -> str:
    """A text that only this life of the process has, among processes that see each other.

    It is empty where the process has ended, and where there is no `/proc`.
    """
    try:
        if Path("/proc/self").readlink().name != str(os.getpid()):  # it is that of another namespace
            return ""
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        namespace = Path("/proc/self/ns/pid").stat().st_ino
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, ValueError) as error:
        let_through(error)
        return ""
    return "" if state in DEAD else f"{pid} {fields[18].decode()} {namespace} {boot}"

"""Journals: the numbers of a process that are not in the storage yet, each process's in a file that outlives it.

The file is mapped into memory and an update is a store to that memory: it makes no system call, and the kernel keeps the
stored numbers when the process is killed. The numbers of each series say how much it gathered, and how much of that went
into a batch. Removals and texts have a record each. The header says which batch is in flight. So whoever finds the file
knows, wherever its owner stopped, which updates the storage may have and which it cannot have, and sends the same batches
again.

A lock on the file (`flock`) shows that its owner lives; it goes with the process, however that ends. Since others may close
its descriptor, the header also names the owner, and the storage, since another one may have the same name elsewhere.

Only files of this user are read, in folders that nobody else may write: the numbers in a journal are counted.

`layout` has the bytes of a journal, `writer` the journal of this process, `reader` makes batches of the bytes of a journal,
`left` sends the journal of a dead process, and `folder` has all journals of a storage on this host.
"""

from .folder import Journals, default_folders
from .layout import DamagedJournal, written
from .reader import batches

__all__ = ["DamagedJournal", "Journals", "batches", "default_folders", "written"]

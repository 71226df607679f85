"""From the cells of this process to a storage: each update once, whatever happens."""

from .buffer import EXIT_SECONDS, Buffer
from .flusher import ENDS
from .health import MESSAGES_LOST
from .target import NotConfigured, call_storage, checked

__all__ = ["ENDS", "EXIT_SECONDS", "MESSAGES_LOST", "Buffer", "NotConfigured", "call_storage", "checked"]

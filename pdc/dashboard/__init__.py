"""The page of PDC_DASHBOARD: rates, errors and latencies by route, live, and the health of the storage."""

from .buckets import as_classic
from .page import PATH, answer, path_of
from .traffic import ROUTES, Traffic, is_failed, one_of

__all__ = ["PATH", "ROUTES", "Traffic", "answer", "as_classic", "is_failed", "one_of", "path_of"]

"""The metric classes: prometheus_client's, with their values in the storage that `setup` chose."""

from .kinds import Counter, Enum, Gauge, Histogram, Info, Mode, Summary
from .stored import StoredMetric, declared_once

__all__ = ["Counter", "Enum", "Gauge", "Histogram", "Info", "Mode", "StoredMetric", "Summary", "declared_once"]

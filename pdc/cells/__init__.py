"""The updates that one process gathered since it last sent: a cell per series, one module per kind of metric."""

from ..process.forks import FREE_THREADED
from .buckets import Window, buckets_of
from .counter import CounterCell, counter_additions
from .gauge import (
    CallbackGaugeCell,
    ProcessGaugeCell,
    SharedGaugeCell,
    in_one_scrape,
    unsent_process_gauge,
    unsent_shared_gauge,
)
from .histogram import HistogramCell, histogram_additions
from .journaled import Journaled, JournaledOperation, Unsent, zeros
from .metric import LOCK_HOLDERS, Cell, Entry, Holder, MetricCells, Removal, Sender
from .numeric import SUM_ROWS, NumericCell, unsent_sums
from .summary import SummaryCell, summary_additions
from .text import TextCell
from .turn import TURN, TURN_LOCK, wait_for_threads

__all__ = [
    "FREE_THREADED",
    "LOCK_HOLDERS",
    "SUM_ROWS",
    "TURN",
    "TURN_LOCK",
    "CallbackGaugeCell",
    "Cell",
    "CounterCell",
    "Entry",
    "HistogramCell",
    "Holder",
    "Journaled",
    "JournaledOperation",
    "MetricCells",
    "NumericCell",
    "ProcessGaugeCell",
    "Removal",
    "Sender",
    "SharedGaugeCell",
    "SummaryCell",
    "TextCell",
    "Unsent",
    "Window",
    "buckets_of",
    "counter_additions",
    "histogram_additions",
    "in_one_scrape",
    "summary_additions",
    "unsent_process_gauge",
    "unsent_shared_gauge",
    "unsent_sums",
    "wait_for_threads",
    "zeros",
]

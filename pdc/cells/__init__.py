"""What one process gathered since it last sent: a cell per series, one module per kind of metric."""

from .counter import CounterCell
from .gauge import CallbackGaugeCell, ProcessGaugeCell, SharedGaugeCell, in_one_scrape
from .histogram import HistogramCell
from .journaled import Journaled, JournaledOperation, zeros
from .metric import Cell, Entry, Holder, MetricCells, Removal, Sender
from .numeric import NumericCell
from .summary import SummaryCell
from .text import TextCell
from .turn import FREE_THREADED, TURN, TURN_LOCK, wait_for_threads

__all__ = [
    "FREE_THREADED",
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
    "in_one_scrape",
    "wait_for_threads",
    "zeros",
]

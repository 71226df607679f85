"""Sent and unsent updates of metrics of every kind, as the work of `Journal.leave`, which declares `hits`."""

from __future__ import annotations

import pdc
from __main__ import hits

level = pdc.Gauge("level", "Shared.")
least = pdc.Gauge("least", "Of each process.", multiprocess_mode="min")
recent = pdc.Gauge("recent", "Of the last process.", multiprocess_mode="mostrecent")
busy = pdc.Gauge("busy", "Of living processes.", multiprocess_mode="livesum")
about = pdc.Info("about", "Versions.")
state = pdc.Enum("state", "The present work.", states=["idle", "working"])
starts = pdc.Counter("starts", "Starts.")


def begin() -> None:
    """Update metrics of each kind."""
    level.set(10)
    least.set(4)
    recent.set(5)
    busy.set(6)
    about.info({"version": "1"})
    starts.inc(7)
    hits.labels("/old").inc(8)
    hits.labels("/kept").inc(9)


begin()
pdc.flush()
level.inc(2.5)
level.dec(0.5)
least.set(3)
recent.set(1)
busy.set(2)
about.info({"version": "2"})
about.info({"version": "3"})
state.state("working")
starts.reset()
starts.inc(4)
hits.labels("/old").inc(50)
hits.remove("/old")
hits.labels("/old").inc()

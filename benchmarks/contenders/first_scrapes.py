"""The first scrape of a process that has updated nothing itself, unless its metrics live in its memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

from benchmarks.worker import Operation

from .libraries import LIBRARIES
from .scrapes import check, declare, fill, fill_elsewhere

IN_MEMORY = "prometheus_client"


def make(library: str, counters: int, histograms: int, what: str) -> Operation:
    """First scrapes; returns their ``seconds``, or the ``bytes`` by which they raise the peak of memory."""
    if library != IN_MEMORY:
        fill_elsewhere(LIBRARIES[library](), counters, histograms)
    command = [sys.executable, "-m", __name__, library, str(counters), str(histograms)]

    def scrape(times: int) -> float:
        answers = [subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout for _ in range(times)]
        return float(sum(json.loads(answer)[what] for answer in answers))

    return scrape


def main() -> None:
    """Scrape once, in this process."""
    library, counters, histograms = sys.argv[1], *map(int, sys.argv[2:])
    chosen = LIBRARIES[library]()
    (fill if library == IN_MEMORY else declare)(chosen, counters, histograms)
    peak, start = _peak_bytes(), time.perf_counter()
    text = chosen.render()
    cost = {"seconds": time.perf_counter() - start, "bytes": _peak_bytes() - peak}
    check(text, counters, histograms)
    sys.stdout.write(json.dumps(cost))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()

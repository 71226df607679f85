"""The cost of instrumentation behind a server: the time of requests at full load, and the work of Redis."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.contest import Case, Contender, Suite

BARE = "bare application"
VERSION2 = "by hand, version 2, Redis"
PDC_REDIS = "pdc, Redis"
INSTRUMENTS = {
    BARE: "bare",
    "by hand, prometheus_client, multiprocess mode": "multiprocess",
    "pdc, SQLite": "pdc_sqlite",
    PDC_REDIS: "pdc_redis",
    VERSION2: "version2_redis",
}


def _contender(name: str, workers: int, measured: str, **how: int) -> Contender:
    keywords = {"instrument": INSTRUMENTS[name], "workers": workers, "measured": measured, **how}
    env = {"PROMETHEUS_MULTIPROC_DIR": "."} if INSTRUMENTS[name] == "multiprocess" else {}
    return Contender(name, "server", keywords, env, version2=name == VERSION2)


def _full_load(seconds: int) -> Case:
    contenders = [_contender(name, 2, "full load", seconds=seconds) for name in INSTRUMENTS]
    return Case("Time of a request at full load, 2 workers", contenders, BARE, measures=("result",), costly=True)


def _redis(name: str, measured: str, unit: str, seconds: int, rounds: int) -> Case:
    contenders = [_contender(each, 4, measured, seconds=seconds) for each in (VERSION2, PDC_REDIS)]
    busier = _contender(PDC_REDIS, 4, measured, seconds=seconds, per_second=1000)
    contenders.append(replace(busier, name=f"{PDC_REDIS}, 1,000 requests/s"))
    return Case(name, contenders, PDC_REDIS, unit, 1, measures=("result",), costly=True, most_rounds=rounds)


def suite(*, quick: bool) -> Suite:
    """The suite; a quick one takes fewer and shorter turns, and omits the time in Redis."""
    seconds, rounds = (1, 1) if quick else (3, 2)
    commands = _redis("Redis commands per 1,000 requests, 4 workers", "calls", "commands", seconds, rounds)
    cases = [_full_load(1 if quick else 2), commands]
    if not quick:
        cases.append(_redis("Time in Redis per 1,000 requests, 4 workers", "usec", "µs", seconds, rounds))
    return Suite("server", "Flask under Gunicorn", cases)

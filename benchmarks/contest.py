"""The contest: a process for each contender, short rounds in turns, so that noise of the machine meets all alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from .redis_server import RedisServer

ROOT = Path(__file__).parent.parent
MOST_TIMES = 1 << 30
STOP_SECONDS = 10.0


@dataclass(frozen=True)
class Contender:
    """An operation to measure: the return value of ``make`` of a module in `benchmarks.contenders` for some keywords."""

    name: str
    module: str
    keywords: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    version2: bool = False
    """True if it runs in the environment of prometheus-distributed-client 2."""
    python: str = sys.executable
    """The interpreter of all others."""
    size: int = 0
    """The size of its task, where contenders of one name differ in that: the report shows how the cost grows with it."""

    @property
    def title(self) -> str:
        """Its name and size; no other contender of its case has the same."""
        return f"{self.name}, {self.size:,}" if self.size else self.name


@dataclass(frozen=True)
class Case:
    """Contenders that do the same thing."""

    name: str
    contenders: list[Contender]
    reference: str
    """The title of the reference: the other contenders are divided by it."""
    unit: str = "µs"
    scale: float = 1e6
    """Units per second, or units per number that the operation returns."""
    measures: tuple[str, ...] = ("wall",)
    """``wall`` or ``cpu`` time, or the ``result`` that the operation returned; each has a table of its own."""
    baseline: str | None = None
    """The contender whose cost is subtracted from the cost of the others, round by round."""
    fresh: int | None = None
    """Do that many operations in a new process each round, instead of filling the time of a round."""
    costly: bool = False
    """True if one operation takes longer than a round should."""
    generations: int = 1
    """The number of processes of a contender, one after the other: the layout of memory in one is worth microseconds."""
    most_rounds: int = MOST_TIMES
    """The most rounds that are measured, whatever the effort."""


@dataclass(frozen=True)
class Suite:
    """Cases that belong on one page."""

    name: str
    title: str
    cases: list[Case]


@dataclass(frozen=True)
class Effort:
    """The length and number of the measurements."""

    rounds: int
    round_seconds: float
    costly_rounds: int
    """Rounds of a case that starts processes."""

    def rounds_of(self, case: Case) -> int:
        """The number of rounds to measure of a case."""
        return min(case.most_rounds, self.costly_rounds if case.costly or case.fresh else self.rounds)


def against(case: Case, packages: Path) -> list[Case]:
    """A case for each contender of this project: as it is now, and with `packages` of another commit."""
    pairs = []
    for contender in [each for each in case.contenders if each.name.startswith("pdc")]:
        env = {**contender.env, "PYTHONPATH": f"{packages}{os.pathsep}{ROOT}"}
        pair = [contender, replace(contender, name="before", env=env)]
        baseline = [each for each in case.contenders if each.name == case.baseline]
        pairs.append(
            replace(case, name=f"{case.name}: {contender.title}", contenders=[*baseline, *pair], reference=pair[1].title)
        )
    return pairs


class Arena:
    """The place of the workers: each runs in its own folder, with its own Redis database in ``REDIS_URL``."""

    def __init__(self, folder: Path, redis: RedisServer, version2: Path | None) -> None:
        self._folder = folder
        self._redis = redis
        self._version2 = version2 and version2.absolute()  # workers have folders of their own

    @classmethod
    @contextmanager
    def opened(cls, version2: Path | None = None) -> Iterator[Arena]:
        """An arena with a Redis server. `version2` is the Python of the environment with version 2 of this project."""
        with tempfile.TemporaryDirectory(prefix="pdc-benchmarks-") as folder, RedisServer(Path(folder)) as redis:
            yield cls(Path(folder), redis, version2)

    def admits(self, contender: Contender) -> bool:
        """True if the contender can run here."""
        return not contender.version2 or self._version2 is not None

    def start(self, contender: Contender) -> Worker:
        """Start the process of a contender, which accepts work once it is `ready`."""
        python = str(self._version2) if contender.version2 else contender.python
        folder = tempfile.mkdtemp(dir=self._folder)
        own = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "", "REDIS_URL": self._redis.new_database()}
        env = {**os.environ, **own, **contender.env}  # so that all packages are compiled, like those of pip
        module = f"benchmarks.contenders.{contender.module}"
        command = [python, "-m", "benchmarks.worker", module, "make", json.dumps(dict(contender.keywords))]
        return Worker(contender, subprocess.Popen(command, cwd=folder, env=env, text=True, **_PIPES))


_PIPES: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "bufsize": 1}


class Worker:
    """The process of one contender."""

    def __init__(self, contender: Contender, process: subprocess.Popen[str]) -> None:
        self.title = contender.title
        self._process = process
        self._orders: IO[str] = process.stdin  # type: ignore[assignment]  # both are pipes
        self._answers: IO[str] = process.stdout  # type: ignore[assignment]  # the same

    def ready(self) -> None:
        """Wait until the operation is made. Raises RuntimeError where that failed; the traceback is on stderr."""
        self._answer()

    def run(self, times: int) -> dict[str, float]:
        """Do the operation that many times and return what `benchmarks.worker.measure` measured."""
        self._orders.write(f"{times}\n")
        answer: dict[str, float] = self._answer()
        return answer

    def times_within(self, seconds: float, *, once: bool) -> int:
        """The number of operations that take so long, or 1, without the work that only the first operation does."""
        times = 1
        self.run(times)
        while not once and (taken := min(self.run(times)["wall"] for _ in range(3))) < seconds / 2 and times < MOST_TIMES:
            times = max(times + 1, min(times * 10, int(times * seconds / max(taken, 1e-9))))
        return times

    def stop(self) -> None:
        """End the process, if necessary amid an operation."""
        self._orders.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._answers.close()

    def _answer(self) -> Any:
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"the process of {self.title!r} ended with {self._process.wait()}: see its traceback above")
        return json.loads(line)


Turn = Callable[[Contender], tuple[dict[str, float], int]]
"""Lets a contender do its operation; returns the measurement and the number of operations."""
Costs = dict[str, list[float]]
"""The cost of one operation, by the title of the contender and by round, in the unit of the case."""


def run(case: Case, arena: Arena, effort: Effort) -> dict[str, Costs]:
    """Measure the contenders of a case in turns, with another one first in each round; return the costs by measure."""
    contenders = [contender for contender in case.contenders if arena.admits(contender)]
    costs: dict[str, Costs] = {measure: {contender.title: [] for contender in contenders} for measure in case.measures}
    rounds = range(effort.rounds_of(case))
    for generation in _shared_out(rounds, case.generations):
        with ExitStack() as stack:
            turn = _turns_of_new(arena, case) if case.fresh else _turns_of_lasting(arena, case, effort, stack)
            for number in generation:
                first = number % len(contenders)
                for contender in contenders[first:] + contenders[:first]:
                    measured, times = turn(contender)
                    for measure, found in costs.items():
                        found[contender.title].append(measured[measure] * case.scale / times)
    return costs


def _shared_out(rounds: range, parts: int) -> list[range]:
    size = -(-len(rounds) // parts)
    return [rounds[first : first + size] for first in range(0, len(rounds), size)]


def _turns_of_new(arena: Arena, case: Case) -> Turn:
    times = case.fresh or 1

    def turn(contender: Contender) -> tuple[dict[str, float], int]:
        worker = arena.start(contender)
        try:
            worker.ready()
            return worker.run(times), times
        finally:
            worker.stop()

    return turn


def _turns_of_lasting(arena: Arena, case: Case, effort: Effort, stack: ExitStack) -> Turn:
    workers: dict[str, Worker] = {}
    for contender in filter(arena.admits, case.contenders):
        worker = workers[contender.title] = arena.start(contender)
        stack.callback(worker.stop)
    for worker in workers.values():
        worker.ready()
    times = {title: worker.times_within(effort.round_seconds, once=case.costly) for title, worker in workers.items()}

    def turn(contender: Contender) -> tuple[dict[str, float], int]:
        return workers[contender.title].run(times[contender.title]), times[contender.title]

    return turn

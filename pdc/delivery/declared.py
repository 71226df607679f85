"""The metrics that live in this process."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Collection

from ..cells import Cell, Entry, MetricCells
from ..process.interruption import tolerate


class DeclaredMetrics:
    """The metrics that somebody in this process holds, by name; metrics of one name in the order of their declarations."""

    def __init__(self) -> None:
        self._by_name: dict[str, list[weakref.ref[MetricCells]]] = {}
        self._retired: deque[MetricCells] = deque()
        """Metrics that nobody holds any more; their cells may still wait to be sent."""
        self.pauses = self._returns = 0
        """How often this process has left its storage, and from which of these times it was back last."""

    def add(self, metric: MetricCells) -> None:
        """Know the metric as long as it lives."""
        same = self._by_name.setdefault(metric.family.name, [])
        same.append(weakref.ref(metric, same.remove))

    def retire(self, metric: MetricCells) -> None:
        """Declare the metric no more. A finalizer calls this, in any thread and amid any code."""
        metric.retired = True
        self._retired.append(metric)

    def drop_retired(self, busy: Callable[[], Collection[MetricCells]]) -> None:
        """Drop the cells of retired metrics, but for the `busy` ones, which wait to be sent."""
        if not self._retired:
            return
        waiting = busy()
        for _ in range(len(self._retired)):
            with tolerate(IndexError):  # another thread was faster
                metric = self._retired.popleft()
                if metric in waiting:
                    self._retired.append(metric)
                else:
                    metric.drop(list(metric.cells))

    def last(self, name: str) -> MetricCells | None:
        """The metric of that name that was declared last."""
        for reference in self._by_name.get(name, [])[-1:]:  # a finalizer may take the last one out at any time
            if (metric := reference()) is not None and not metric.retired:
                return metric
        same = self.named(name)
        return same[-1] if same else None

    def named(self, name: str) -> list[MetricCells]:
        """The metrics of that name."""
        known = [reference() for reference in tuple(self._by_name.get(name, ()))]
        return [metric for metric in known if metric is not None and not metric.retired]

    def all(self, names: Collection[str] | None = None) -> list[MetricCells]:
        """All metrics, or those with these names."""
        return [metric for name in (list(self._by_name) if names is None else names) for metric in self.named(name)]

    def cells(self) -> list[Cell]:
        """The cells of all metrics."""
        return [cell for metric in self.all() for cell in list(metric.cells)]

    @property
    def report_idle(self) -> bool:
        """True where an idle process has something to send."""
        return any(metric.reports_idle for metric in self.all())

    def unprompted(self, names: Collection[str] | None, beat: bool) -> list[Cell]:
        """The cells of those metrics, or of all, to send though no update queued them. Calls functions of the application."""
        return [cell for metric in self.all(names) for cell in metric.unprompted(beat=beat)]

    @property
    def are_away(self) -> bool:
        """True where the storage has no live values of this process, since that has left it."""
        return self._returns != self.pauses

    def return_to(self, queue: deque[Entry], names: Collection[str] | None) -> bool:
        """Queue the live values of those metrics, or of all, where they are away; return whether they are."""
        pauses = self.pauses
        if self._returns == pauses:
            return False
        for metric in self.all(names):
            queue.extend(metric.cells_to_resend() if metric.family.live else ())
        if names is None:
            self._returns = pauses  # the process may have left once more by now
        return True

    def discard(self) -> None:
        """Drop everything that was gathered."""
        for metric in self.all():
            metric.discard()

    def after_fork(self) -> None:
        """Start as a new process. The parent sends what retired metrics gathered, from its journal."""
        for metric in self.all():
            metric.after_fork()
        self._retired.clear()
        self._returns = self.pauses

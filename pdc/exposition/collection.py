"""One read of the storage, as families or as text, and the collectors of a registry after it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector, CollectorRegistry, RestrictedRegistry

from .. import config
from ..cells import in_one_scrape
from ..delivery import health
from ..family import Page, families
from ..storage import Snapshot, StorageError
from .negotiation import ESCAPINGS
from .others import OtherCollectors, admitted, chosen, collectors
from .rendering import AnyEncoder, Encoder, Renderer

_RENDERER = Renderer()


def generate_latest(registry: Collector | None = None, escaping: str = openmetrics.UNDERSCORES) -> bytes:
    """Render all that the storage holds in the text format 0.0.4, also metrics that this process never declared.

    With a registry, its target info and its other collectors come after. A `restricted_registry` leaves only the samples of
    its names. Of another object with a `collect` method, its families are rendered and nothing else. `escaping` is one of the
    schemes of prometheus_client. Raises ValueError for another one, NotConfigured and StorageError.
    """
    if escaping not in ESCAPINGS:
        raise ValueError(f"escaping must be one of {', '.join(ESCAPINGS)}, got {escaping!r}")
    return render(Encoder(escaping=escaping), registry)


def collect(
    registry: Collector | None = None,
    names: Collection[str] | None = None,
    *,
    own: bool = False,
    escaping: str = openmetrics.ALLOWUTF8,
) -> list[Metric]:
    """Return the families of the storage, from one read, then those of the registry's other collectors.

    `names` leaves only the samples with these names, as the query ``?name[]=`` does. A family that shares a sample name with
    an earlier one, as `escaping` spells them, is left out. `own` adds the metrics of pdc itself. Raises NotConfigured and
    StorageError.
    """
    if isinstance(registry, RestrictedRegistry):
        return collect(*_whole(registry, names), own=own, escaping=escaping)
    wanted = None if names is None else frozenset(names)  # there may be thousands
    return list(chosen(in_one_scrape(_collect, registry, Page(escaping), own, wanted), wanted))


def _whole(registry: RestrictedRegistry, names: Collection[str] | None) -> tuple[Collector, Collection[str]]:
    """The registry that is restricted, and those of its names that are wanted."""
    restricted, whole = registry._name_set, registry._registry  # noqa: SLF001 - it has no public names for them
    return whole, restricted.intersection(names or restricted)


def render(
    encoder: AnyEncoder,
    registry: Collector | OtherCollectors | None,
    names: Collection[str] | None = None,
    *,
    own: bool = False,
) -> bytes:
    """Render the families that `collect` returns, those of `OtherCollectors` without the ones that fail.

    Where the format splits no family, those that have a sample of such a name are whole.
    """
    if isinstance(registry, RestrictedRegistry):
        return render(encoder, *_whole(registry, names), own=own)
    wanted = None if names is None else frozenset(names)
    if registry is None or isinstance(registry, (CollectorRegistry, OtherCollectors)):
        return in_one_scrape(_render, encoder, registry, own, wanted)
    found = collect(registry, escaping=encoder.escaping)
    return encoder.encode(chosen(found, wanted, whole=not encoder.splits)) + encoder.end


def _collect(registry: Collector | None, page: Page, own: bool, names: frozenset[str] | None) -> list[Metric]:
    if registry is not None and not isinstance(registry, CollectorRegistry):
        return list(page.admitted(registry.collect()))
    snapshot = read_storage(own=own)
    return [*families(snapshot.metrics, snapshot.now, page, names), *_others(registry, page, names)]


def _render(
    encoder: AnyEncoder, registry: CollectorRegistry | OtherCollectors | None, own: bool, names: frozenset[str] | None
) -> bytes:
    snapshot, others = read_storage(own=own), partial(_render_others, registry, encoder, names)
    if names is None:
        return _RENDERER.render(snapshot, encoder, others)
    if not encoder.splits:
        return Renderer().render(snapshot, encoder, others, names)
    page = Page(encoder.escaping)
    stored = chosen(families(snapshot.metrics, snapshot.now, page, names), names)
    return encoder.encode(stored) + others(page) + encoder.end


def _render_others(
    registry: CollectorRegistry | OtherCollectors | None, encoder: AnyEncoder, names: frozenset[str] | None, page: Page
) -> bytes:
    if isinstance(registry, OtherCollectors):
        return registry.render(encoder, page, names)
    return encoder.encode(chosen(_others(registry, page, names), names, whole=not encoder.splits))


def read_storage(*, own: bool) -> Snapshot:
    """Read the storage; `own` adds the metrics of pdc itself.

    Raises NotConfigured and StorageError, the latter also where no other metric exists: zeros of a storage that nobody
    writes to look as if all were well.
    """
    now, stored = config.read(config.DEFAULT)
    if own:
        config.expect_on()
    if own and not stored and not config.is_declared():
        where = config.described(config.DEFAULT.required())
        raise StorageError(
            f"nobody writes to {where}, or all of it has expired, and this process declares no metric: "
            "check that the programs which count use the same"
        )
    about = health.fields(stored, waiting=config.waiting_series(), is_up=config.is_up()) if own else {}
    for name in health.NAMES:
        stored.pop(name, None)
    return Snapshot(now, stored | about)


def _others(registry: CollectorRegistry | None, page: Page, names: frozenset[str] | None) -> Iterator[Metric]:
    """The families of the registry that the page does not show yet: metrics of the default storage are on it."""
    if registry is not None:
        for collector in collectors(registry, names):
            yield from admitted(collector, page)

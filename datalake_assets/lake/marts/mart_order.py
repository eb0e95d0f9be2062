"""In which order feeds are exported: a mart after what it reads, so that one pass brings all of them up to date."""

from __future__ import annotations

from collections.abc import Sequence
from graphlib import CycleError, TopologicalSorter

from datalake_assets.errors import DatalakeError
from datalake_assets.feed import Feed

__all__ = ["made_in_order", "made_in_waves"]


def made_in_order(feeds: Sequence[Feed]) -> tuple[Feed, ...]:
    """The feeds, marts after what they read; else as they are. Without marts nothing heavy is imported."""
    return tuple(feed for wave in made_in_waves(feeds) for feed in wave)


def made_in_waves(feeds: Sequence[Feed]) -> list[list[Feed]]:
    """The feeds in groups; what a mart reads is in a group before its own.

    A mart whose query cannot be read comes last, where its export says why.
    """
    marts = {feed.name: _inputs(feed) for feed in feeds if feed.is_mart}
    waves = [[feed for feed in feeds if not feed.is_mart]] if len(marts) < len(feeds) else []
    if not marts:
        return waves
    sorter = TopologicalSorter({name: inputs & marts.keys() for name, inputs in marts.items()})
    try:
        sorter.prepare()
    except CycleError:
        return [*waves, [feed for feed in feeds if feed.is_mart]]
    while sorter.is_active():
        ready = sorter.get_ready()
        waves.append([feed for feed in feeds if feed.name in ready])
        sorter.done(*ready)
    return waves


def _inputs(feed: Feed) -> frozenset[str]:
    from datalake_assets.lake.marts.mart_inputs import declared_mart, input_names  # noqa: PLC0415  DuckDB

    try:
        return input_names(declared_mart(feed).query) - {feed.name}
    except DatalakeError:
        return frozenset()

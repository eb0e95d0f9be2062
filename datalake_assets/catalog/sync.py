"""The flow that brings catalogs in step with the lake: what is missing is created, what is there gets what it lacks.

::

    is the database there? ──no──> create it ─┐
              └──────────yes──────────────────┴─> is the feed there? ──no──> create its table, with all partitions
                                                       └──yes──> columns, address, partitions that differ
                                                                        └─> views ─> what no feed has any more

Each step finds what it needs in the lake and in the catalog, never in what an earlier step remembered. So it may be
repeated after a crash, by anybody, and two syncs at once end with the same catalog.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from datalake_assets.catalog.base import Catalog, Known, Outcome
from datalake_assets.catalog.duckdb_file import DuckDBFile
from datalake_assets.catalog.entries import Entry, NotEntered, entries_of
from datalake_assets.catalog.glue import GlueCatalog, GlueSettings
from datalake_assets.catalog.views import View, ViewRegistry
from datalake_assets.errors import ConfigError, DatalakeError, TransientStoreError, unforeseen_text
from datalake_assets.feed import Feed
from datalake_assets.lake.store.base import Store
from datalake_assets.retrying import attempts
from datalake_assets.settings import Settings

__all__ = ["CATALOGS", "CatalogSync", "Wanted", "catalog_kinds", "open_catalogs", "sync_catalogs"]

logger = logging.getLogger(__name__)

#: Attempts at a step that failed for a reason that passes.
ATTEMPTS = 4
_FILE = "lake.duckdb"
T = TypeVar("T")


def _duckdb(settings: Settings, store: Store) -> Catalog:
    return DuckDBFile(duckdb_file(settings, store), lake=store.uri)


def _glue(settings: Settings, store: Store) -> Catalog:
    told = GlueSettings(
        database=settings.catalog_database,
        workgroup=settings.athena_workgroup,
        output=settings.athena_output,
        is_projected=settings.catalog_projection,
    )
    return GlueCatalog(told, lake=store.uri)


#: The catalogs that settings can name; another one is a module and a line.
CATALOGS: Final[dict[str, Callable[[Settings, Store], Catalog]]] = {"duckdb": _duckdb, "glue": _glue}


def duckdb_file(settings: Settings, store: Store) -> Path:
    """Where the DuckDB file is: where the settings say, or in the local lake."""
    if settings.catalog_file:
        return Path(settings.catalog_file)
    return Path(_FILE) if "://" in store.uri else Path(store.path(_FILE))


def catalog_kinds(settings: Settings, store: Store, chosen: Sequence[str] = ()) -> tuple[str, ...]:
    """The catalogs to be kept: those that are asked for, or else those of the settings; a local lake has its file.

    Raises:
        ConfigError: There is no such catalog.
    """
    named = [each.strip() for each in settings.catalog.split(",") if each.strip()]
    kinds = tuple(dict.fromkeys(chosen or named or (() if "://" in store.uri else ("duckdb",))))
    for kind in kinds:
        if kind not in CATALOGS:
            raise ConfigError(f"there is no catalog {kind!r}; there are {', '.join(CATALOGS)}")
    return kinds


def open_catalogs(settings: Settings, store: Store, kinds: Iterable[str]) -> list[Catalog]:
    """The catalogs; talks to nobody yet."""
    return [CATALOGS[kind](settings, store) for kind in kinds]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What catalogs are to have of a lake, as it is now.

    Attributes:
        entries: Feeds.
        left_out: Feeds that they cannot have.
        views: Views.
        broken: Documents that are no views, by name, with what is wrong; what catalogs have of these names is kept.
        is_whole: Whether these are all active feeds, so that what is ours and none of them is stale.
    """

    entries: tuple[Entry, ...]
    left_out: tuple[NotEntered, ...]
    views: tuple[View, ...]
    is_whole: bool = True
    broken: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store, feeds: Iterable[Feed], *, is_whole: bool = True) -> Wanted:
        """Reads it from the lake; some feeds alone have no views."""
        entries, left_out = entries_of(store, feeds)
        broken: dict[str, str] = {}
        views: tuple[View, ...] = ()
        if is_whole:
            views = ViewRegistry(store).list(on_problem=lambda name, error: broken.update({name: str(error)}))
        return cls(tuple(entries), tuple(left_out), views, is_whole, broken)


class CatalogSync:
    """Brings one catalog in step with a lake, step by step.

    Args:
        catalog: An open catalog.
        wanted: What it is to have.
        lake: The lake's address.
    """

    def __init__(self, catalog: Catalog, wanted: Wanted, *, lake: str) -> None:
        self._catalog, self._wanted, self._lake = catalog, wanted, lake

    @property
    def _entries(self) -> list[Entry]:
        """The feeds that this catalog can have."""
        return [each for each in self._wanted.entries if not self._catalog.why_not(each)]

    @property
    def _left_out(self) -> list[NotEntered]:
        """The others."""
        told = [NotEntered(each.feed, self._catalog.why_not(each)) for each in self._wanted.entries]
        return [*self._wanted.left_out, *(each for each in told if each.reason)]

    def has_database(self) -> bool:
        """Whether the database is there."""
        return _patiently(self._catalog.has_database)

    def ensure_database(self) -> bool:
        """Creates the database if it is missing; whether it was."""
        if self.has_database():
            return False
        _patiently(self._catalog.create_database)
        return True

    def absent(self) -> list[Entry]:
        """The feeds that it has not."""
        known = _patiently(self._catalog.known)
        return [each for each in self._entries if each.name.lower() not in known]

    def behind(self) -> list[Entry]:
        """The feeds that it has, as they were."""
        known = _patiently(self._catalog.known)
        return [
            each
            for each in self._entries
            if each.name.lower() in known
            and (self._is_anothers(known[each.name.lower()]) or _patiently(partial(self._catalog.needs, each)))
        ]

    def create(self) -> list[Outcome]:
        """Enters the feeds that are missing."""
        return [self._done(each.name, partial(self._catalog.create, each)) for each in self.absent()]

    def update(self) -> list[Outcome]:
        """Brings the feeds up to date that are there."""
        known = _patiently(self._catalog.known)
        return [self._done(each.name, partial(self._updated, each, known)) for each in self.behind()]

    def _updated(self, entry: Entry, known: dict[str, Known]) -> Outcome:
        there = known[entry.name.lower()]
        if self._is_anothers(there) or there.is_view:
            raise ConfigError(
                f"{there.name!r} is in the catalog and not this lake's; it is left alone: rename it, or name another"
                " database"
            )
        return self._catalog.update(entry)

    def _is_anothers(self, known: Known) -> bool:
        return known.owner != self._lake

    def finish(self, *, prune: bool = False) -> list[Outcome]:
        """Views, what cannot be entered, and what no active feed has any more, which is dropped if asked for."""
        known = _patiently(self._catalog.known)
        told = [self._done(each.name, partial(self._view, each, known)) for each in self._wanted.views]
        told += [
            Outcome(self._catalog.kind, name, "failed", detail=reason) for name, reason in self._wanted.broken.items()
        ]
        for each in self._wanted.entries:  # what it has of a feed that it could have once is no more true
            there = known.get(each.name.lower())
            if there is not None and self._catalog.why_not(each) and not (self._is_anothers(there) or there.is_view):
                self._done(each.name, partial(self._dropped, there))
        told += [Outcome(self._catalog.kind, each.feed.name, "left_out", detail=each.reason) for each in self._left_out]
        return [*told, *self._stale(known, prune=prune)]

    def _view(self, view: View, known: dict[str, Known]) -> Outcome:
        there = known.get(view.name.lower())
        if there is not None and (self._is_anothers(there) or not there.is_view):
            raise ConfigError(f"{there.name!r} is in the catalog and no view of this lake's; it is left alone")
        return self._catalog.put_view(view)

    def _stale(self, known: dict[str, Known], *, prune: bool) -> Iterator[Outcome]:
        if not self._wanted.is_whole:
            return
        kept = {each.name.lower() for each in self._wanted.entries}
        kept |= {each.name.lower() for each in self._wanted.views}
        kept |= {each.feed.name.lower() for each in self._wanted.left_out}
        kept |= {name.lower() for name in self._wanted.broken}
        for name, each in sorted(known.items()):
            if name in kept or self._is_anothers(each):
                continue
            if not prune:
                detail = "no active feed or view has this name any more; --prune drops it from the catalog"
                yield Outcome(self._catalog.kind, each.name, "stale", detail=detail)
                continue
            yield self._done(each.name, partial(self._dropped, each))

    def _dropped(self, known: Known) -> Outcome:
        self._catalog.drop(known)
        return Outcome(self._catalog.kind, known.name, "dropped")

    def _done(self, name: str, step: Callable[[], Outcome]) -> Outcome:
        """One step; a feed that fails stops no other."""
        try:
            done = _patiently(step)
        except DatalakeError as error:
            logger.warning("%s of the catalog %s: %s", name, self._catalog.kind, error)
            return Outcome(self._catalog.kind, name, "failed", detail=str(error))
        except Exception as error:
            logger.exception("%s of the catalog %s", name, self._catalog.kind)
            return Outcome(self._catalog.kind, name, "failed", detail=unforeseen_text(error))
        if done.state != "current":
            logger.info("%s of the catalog %s: %s", name, self._catalog.kind, done.state)
        return done

    def settled(self) -> list[Outcome]:
        """The last step, after `create` and `update`: what has become of every feed and view.

        A feed that is still missing or behind failed before, and is tried once more.
        """
        done = [*self.create(), *self.update()]
        return [*done, *self.current(done), *self.finish()]

    def current(self, told: Iterable[Outcome]) -> list[Outcome]:
        """The feeds of which nothing was told: they are as they should be."""
        named = {each.name for each in told}
        return [Outcome(self._catalog.kind, each.name, "current") for each in self._entries if each.name not in named]


def _patiently(step: Callable[[], T]) -> T:
    """A step, again after a failure that passes."""
    for attempt in attempts(TransientStoreError, attempts=ATTEMPTS, wait_initial=0.5, timeout=120):
        with attempt:
            return step()
    raise AssertionError("stamina ends by returning or raising")


def sync_catalogs(
    settings: Settings,
    store: Store,
    feeds: Iterable[Feed],
    *,
    kinds: Sequence[str] = (),
    is_whole: bool = True,
    prune: bool = False,
    catalogs: Sequence[Catalog] | None = None,
) -> list[Outcome]:
    """Brings catalogs in step with the lake, all steps one after another.

    Args:
        settings: The installation.
        store: The lake.
        feeds: All active feeds, or some of them.
        kinds: Which catalogs; none: those of the settings.
        is_whole: Whether these are all active feeds.
        prune: Drop what no active feed has any more; data stay.
        catalogs: Catalogs that are there already, in place of those that ``kinds`` names: a `HiveCatalog`, say.

    Returns:
        What became of each feed and view in each catalog.

    Raises:
        DatalakeError: A catalog cannot be reached, or its database not created; the others are in step.
    """
    wanted = Wanted.of(store, feeds, is_whole=is_whole)
    told: list[Outcome] = []
    failed: list[DatalakeError] = []
    opened = open_catalogs(settings, store, catalog_kinds(settings, store, kinds)) if catalogs is None else catalogs
    for each in opened:
        try:
            with each as catalog:
                steps = CatalogSync(catalog, wanted, lake=store.uri)
                steps.ensure_database()
                done = [*steps.create(), *steps.update()]
                told += [*done, *steps.current(done), *steps.finish(prune=prune)]
        except DatalakeError as error:  # keeps no other catalog from being brought in step
            logger.warning("the catalog %s: %s", each.kind, error)
            failed.append(error)
    if failed:
        raise failed[0]
    return told

"""Connections to the lake and to the sources, as Dagster resources.

The resources carry `Settings` as an object, never as Dagster configuration: nothing of it, secrets least of all, shows
up in run configs or in the UI. A run's process loads the code location anew, and with it the environment.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Protocol

import dagster as dg
from pydantic import PrivateAttr

from datalake_assets.feed import Feed
from datalake_assets.lake.registry import FeedRegistry, RegistryListing
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3_access import CatalogAccess, S3Access
from datalake_assets.lake.table import LakeTable
from datalake_assets.settings import Settings
from datalake_assets.sources.base import SourceSystem
from datalake_assets.sources.systems import StandIn, connect

__all__ = ["Lake", "LakeResource", "Registry", "SourceResource"]


class Registry(Protocol):
    """What the code location needs of a registry of feeds."""

    def list(self) -> RegistryListing:
        """All active feeds, and the files that had to be skipped."""

    def get(self, name: str) -> Feed:
        """The active feed of this name, or `FeedNotFound`."""

    def digest(self) -> str:
        """Changes whenever the registry does."""


class Lake:
    """One lake: its registry and its tables. Opens nothing before it is asked.

    Args:
        settings: Where it is.
        s3: How S3 is reached, if not as the settings say.
    """

    def __init__(self, settings: Settings, *, s3: S3Access | None = None) -> None:
        self.settings, self._s3 = settings, s3 or S3Access(endpoint=settings.s3_endpoint)

    @cached_property
    def store(self) -> Store:
        """The lake's object store."""
        return open_store(self.settings.lake, s3=self._s3, catalog=CatalogAccess.of(self.settings))

    @property
    def uri(self) -> str:
        """The lake's address, fit for messages."""
        return self.store.uri

    @property
    def registry(self) -> Registry:
        """The lake's feeds."""
        return FeedRegistry(self.store)

    def table(self, feed: Feed) -> LakeTable:
        """A feed's data, for use in one thread."""
        from datalake_assets.lake.tables import open_table  # noqa: PLC0415  loads pyarrow's datasets: half a second

        return open_table(self.store, feed)


class LakeResource(dg.ConfigurableResource[Lake]):
    """The lake.

    Attributes:
        settings: The installation's settings.
    """

    settings: dg.ResourceDependency[Settings]
    _lake: Lake | None = PrivateAttr(default=None)

    def open(self) -> Lake:
        """The lake; one connection for the life of the resource, which is a run's."""
        if self._lake is None:
            self._lake = self._connect()
        return self._lake

    def _connect(self) -> Lake:
        return Lake(self.settings)


class SourceResource(dg.ConfigurableResource["SourceResource"]):
    """A system that feeds are read from, connected at the first use and closed at the end of the run.

    Attributes:
        type: The system's type.
        settings: The installation's settings.
        lake: The lake, which may bring a source of its own.
        stand_in: Brings it.
    """

    type: str
    settings: dg.ResourceDependency[Settings]
    lake: dg.ResourceDependency[LakeResource]
    stand_in: dg.ResourceDependency[StandIn]
    _open: Callable[[], SourceSystem] | None = PrivateAttr(default=None)

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["SourceResource"]:  # noqa: ARG002  # Dagster's signature
        """Keeps the connection for one run."""
        with ExitStack() as stack:
            self._open = _once(lambda: stack.enter_context(self.connect(self.settings, self.lake.open())))
            yield self

    def open(self) -> SourceSystem:
        """The system; valid until the run ends."""
        if self._open is None:
            msg = "a source is open only during a run"
            raise RuntimeError(msg)
        return self._open()

    @contextmanager
    def connect(self, settings: Settings, lake: Lake) -> Iterator[SourceSystem]:
        """Connects to the system, by the settings or by what stands in for them in this lake."""
        with self.stand_in(settings, lake.store, {self.type}) as used, connect(self.type, used) as system:
            yield system


def _once(connect: Callable[[], SourceSystem]) -> Callable[[], SourceSystem]:
    known: list[SourceSystem] = []

    def open_once() -> SourceSystem:
        if not known:
            known.append(connect())
        return known[0]

    return open_once

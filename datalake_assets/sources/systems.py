"""The systems that feeds can be exported from. A new one is a folder beside this module, and a line here.

Other packages add theirs by an entry point of the group ``datalake_assets.sources`` that names a `System`: so every
process that reads feeds knows it, a Dagster run or a child of ``datalake export --parallel`` among them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol

from datalake_assets.errors import ConfigError
from datalake_assets.settings import Settings
from datalake_assets.sources.base import SourceSystem, System
from datalake_assets.sources.dlt.dlt_declaration import DLT
from datalake_assets.sources.files.files_declaration import FILES
from datalake_assets.sources.kafka.kafka_model import KAFKA
from datalake_assets.sources.kinesis.kinesis_model import KINESIS
from datalake_assets.sources.ksqldb.declaration import KSQLDB
from datalake_assets.sources.marts.mart_declaration import MARTS
from datalake_assets.sources.sql.sql_declaration import SQL
from datalake_assets.sources.sqs.sqs_model import SQS

__all__ = ["ENTRY_POINTS", "StandIn", "connect", "no_stand_in", "register", "registered", "system", "systems"]

#: The first one is meant where a feed's document names no type.
_BUILT_IN = (KSQLDB, SQS, FILES, MARTS, SQL, DLT, KAFKA, KINESIS)
#: The group of entry points by which other packages add systems.
ENTRY_POINTS = "datalake_assets.sources"

#: Types begin the names of settings, and are resource keys in Dagster.
_TYPE = re.compile(r"[a-z][a-z0-9_]{0,31}")
#: What is not exported, and Dagster's other resources.
_TAKEN = frozenset({"asset", "folder", "lake", "lake_io_manager"})

_registered: dict[str, System] = {each.type: each for each in _BUILT_IN}


def systems() -> Mapping[str, System]:
    """All systems by type.

    Raises:
        ConfigError: An installed package's system cannot be loaded.
    """
    return {**_registered, **{name: each for name, each in _installed().items() if name not in _registered}}


def system(type_: str) -> System:
    """The system of this type.

    Raises:
        ConfigError: There is none.
    """
    known = systems()
    if type_ not in known:
        raise ConfigError(f"there is no source of type {type_!r}; take one of {', '.join(sorted(known))}")
    return known[type_]


def register(added: System) -> None:
    """Adds a system to those of this process.

    Raises:
        ConfigError: Another one has its type, or a flag of it in another shape.
    """
    _refuse_clashes(added, systems())
    _registered[added.type] = added


@contextmanager
def registered(added: System) -> Iterator[System]:
    """A system that is one of those of this process while the context is open."""
    register(added)
    try:
        yield added
    finally:
        del _registered[added.type]


@cache
def _installed() -> Mapping[str, System]:
    found: dict[str, System] = {}
    for point in entry_points(group=ENTRY_POINTS):
        try:
            added = point.load()
        except Exception as error:
            raise ConfigError(f"source {point.name!r} of {point.value}: cannot be loaded: {error}") from error
        if not isinstance(added, System):
            raise ConfigError(f"source {point.name!r} of {point.value}: {type(added).__name__} is no System")
        _refuse_clashes(added, {**_registered, **found})
        found[added.type] = added
    return found


def _refuse_clashes(added: System, known: Mapping[str, System]) -> None:
    if not _TYPE.fullmatch(added.type) or added.type in _TAKEN:
        raise ConfigError(f"{added.type!r} cannot be the type of a source: take a word in lower case that is not taken")
    if added.type in known:
        raise ConfigError(f"there is a source of type {added.type!r} already; give yours another type")
    shapes = {option.flag: (option.shape, option.choices) for each in known.values() for option in each.options}
    for option in added.options:
        if shapes.get(option.flag, (option.shape, option.choices)) != (option.shape, option.choices):
            raise ConfigError(
                f"source {added.type!r}: {option.flag} is of another shape elsewhere; name it differently"
            )


class StandIn(Protocol):
    """Brings a source of its own to a lake that has one, like the demo's; every other lake needs settings."""

    def __call__(self, settings: Settings, store: Any, types: Collection[str]) -> AbstractContextManager[Settings]:
        """The settings by which these types of sources are connected to, valid while the context is open."""


@contextmanager
def no_stand_in(settings: Settings, store: Any, types: Collection[str]) -> Iterator[Settings]:  # noqa: ARG001  `StandIn`
    """The settings as they are."""
    yield settings


@contextmanager
def connect(type_: str, settings: Settings) -> Iterator[SourceSystem]:
    """The system of this type, by an installation's settings; closed with the context.

    Raises:
        ConfigError: There is none, or the settings cannot work.
    """
    connected = system(type_).open(settings)
    try:
        yield connected
    finally:
        connected.close()

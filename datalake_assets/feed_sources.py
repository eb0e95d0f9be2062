"""What a feed may say of the place that its rows come from, and which kinds of feeds and positions there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from importlib import import_module
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import (
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from datalake_assets.policies import (
    Model,
)

__all__ = [
    "ADOPTED",
    "AssetSource",
    "DeltaTableSource",
    "FeedKind",
    "FolderSource",
    "IcebergTableSource",
    "MartSource",
    "PositionKind",
    "SourceModel",
    "SystemSource",
    "as_declared",
    "declared_systems",
]


class FeedKind(StrEnum):
    """A stream's rows are appended to time partitions, a table's landed as full snapshots; a folder is adopted."""

    STREAM = "stream"
    TABLE = "table"
    FOLDER = "folder"

    @property
    def folder(self) -> str:
        """The lake folder, and first part of the asset key, of feeds of this kind."""
        return f"{self.value}s"


class PositionKind(StrEnum):
    """How it is known which rows of a source a partition holds; a feed keeps one kind for life.

    ``offsets``: rows are numbered by the source, and appended. ``window``: a partition is pulled, and replaced, as a
    whole. ``snapshot``: a version is all of a table. ``ids``: items without order are remembered one by one.
    """

    OFFSETS = "offsets"
    WINDOW = "window"
    SNAPSHOT = "snapshot"
    IDS = "ids"


class SourceModel(Model, ABC):
    """What a feed may say of the place that its rows come from; each kind of place has a model of its own.

    Attributes:
        type: Tells the models apart.
        serves: The kinds of feeds that it can be the source of.
    """

    #: Built when the first feed declares one: a command reads few kinds of sources, and there are many.
    model_config = ConfigDict(defer_build=True)

    type: str
    serves: ClassVar[frozenset[FeedKind]]

    @property
    @abstractmethod
    def where(self) -> str:
        """What is read, for a person."""


class SystemSource(SourceModel):
    """What a feed may say of a system that it is exported from; `datalake_assets.sources` has the systems.

    Attributes:
        counts_rows: Whether the system can tell how many rows there are without reading them.
        has_backlog: Whether the system can tell what waits to be read (`datalake_assets.sources.base.HasBacklog`).
        news_sensor: Begins the name of the sensor that looks for new items; empty if there is nothing to look at
            (`datalake_assets.sources.base.TellsNews`).
        shared_numbers: Whether rows of positions ``offsets`` may share a number. A read then has all rows of a number,
            each once; and no row comes later whose number is not above those that were read.
    """

    serves: ClassVar[frozenset[FeedKind]] = frozenset({FeedKind.STREAM, FeedKind.TABLE})
    counts_rows: ClassVar[bool] = False
    has_backlog: ClassVar[bool] = False
    news_sensor: ClassVar[str] = ""
    shared_numbers: ClassVar[bool] = False

    @property
    def can_be_followed(self) -> bool:
        """Whether the system gives a stream's rows as they come (`datalake_assets.sources.base.Follows`)."""
        return False

    def ends_by_silence(self, kind: FeedKind) -> bool:  # noqa: ARG002  some systems' reads do
        """Whether a read is over only once nothing came for a while (`datalake_assets.sources.base.BeginsAhead`)."""
        return False

    @abstractmethod
    def position_kind(self, kind: FeedKind) -> PositionKind:
        """The kind of positions that the rows carry, if they are read for a feed of this kind."""

    @property
    def time_column(self) -> str | None:
        """The lake column of a record's own timestamp, which partitions a stream that names no other."""
        return None

    @property
    def position_columns(self) -> tuple[str, str] | None:
        """The lake columns that carry a row's source partition and offset, where both are landed."""
        return None

    @property
    def remembers(self) -> timedelta | None:
        """How long an item is remembered that came, where a feed says so; it can be raised, and not be lowered."""
        return None

    def reading(self, kind: FeedKind) -> str:
        """How the rows are read, in a word or two, for a list of feeds."""
        return self.position_kind(kind).value

    def problem(self) -> str | None:
        """Why every export would refuse what is declared, without asking the system; None if nothing shows.

        Asked when a feed is added or changed. It makes no feed invalid that is there already.
        """
        return None


class FolderSource(SourceModel):
    """A folder of Parquet files that others write, adopted where it lies; see ``datalake adopt``.

    Attributes:
        uri: The folder: an absolute path, or ``s3://bucket/prefix``.
        asset: Key of the Dagster asset that stands for it in a project of its own, like ``sales/exports``; None for
            the one that we make.
    """

    serves: ClassVar[frozenset[FeedKind]] = frozenset({FeedKind.FOLDER})

    type: Literal["folder"] = "folder"
    uri: Annotated[str, Field(min_length=1)]
    asset: str | None = None

    @property
    def where(self) -> str:
        """What is read, for a person."""
        return self.uri


class IcebergTableSource(SourceModel):
    """An Apache Iceberg table that others write, adopted in its catalog, or by its metadata to be looked at alone.

    Attributes:
        table: Its name in the catalog, with its namespace: ``sales.orders``; empty if the catalog is not known.
        catalog: The catalog's URL, ``glue``, or its name in pyiceberg's own configuration; empty: the lake's.
        uri: Where a table lies whose catalog is not known: its folder, or a metadata file.
    """

    serves: ClassVar[frozenset[FeedKind]] = frozenset({FeedKind.FOLDER})

    type: Literal["iceberg"] = "iceberg"
    table: Annotated[str, Field(pattern=r"^([^.\s/]+(\.[^.\s/]+)+)?$")] = ""
    catalog: Annotated[str, Field(pattern=r"^[^@\s]*$")] = ""
    uri: str = ""

    @model_validator(mode="after")
    def _is_named_once(self) -> IcebergTableSource:
        if bool(self.table) is bool(self.uri) or (self.uri and self.catalog):
            msg = "give the table's name in its catalog, or the uri of its metadata"
            raise ValueError(msg)
        return self

    @property
    def where(self) -> str:
        """What is read, for a person."""
        return self.uri or f"iceberg:{self.table}"


class DeltaTableSource(SourceModel):
    """A Delta table that others write, adopted where it lies.

    Attributes:
        uri: Its folder: an absolute path, or ``s3://bucket/prefix``.
    """

    serves: ClassVar[frozenset[FeedKind]] = frozenset({FeedKind.FOLDER})

    type: Literal["delta"] = "delta"
    uri: Annotated[str, Field(min_length=1)]

    @property
    def where(self) -> str:
        """What is read, for a person."""
        return self.uri


class AssetSource(SourceModel):
    """An asset of somebody's Dagster project that lands what it returns, by way of `ParquetLakeIOManager`.

    Attributes:
        asset: Its key, like ``sales/orders``.
    """

    serves: ClassVar[frozenset[FeedKind]] = frozenset({FeedKind.STREAM, FeedKind.TABLE})

    type: Literal["asset"] = "asset"
    asset: Annotated[str, Field(min_length=1)]

    @property
    def where(self) -> str:
        """What is read, for a person."""
        return self.asset


class MartSource(SystemSource):
    """SQL over other feeds of the same lake: the feed is a mart, which is made of them again whenever they change.

    A partition of a stream is made of the partitions of its inputs that lie within it, and of tables and folders as a
    whole; a table is made of all that there is.

    Attributes:
        query: One SELECT in DuckDB's SQL, which reads feeds by their names.
        whole: Streams that each partition reads whole, and not only their partitions of the same time.
    """

    type: Literal["mart"] = "mart"
    query: Annotated[str, Field(min_length=1)]
    whole: tuple[str, ...] = ()

    @field_validator("query")
    @classmethod
    def _is_bare(cls, query: str) -> str:
        return query.strip().rstrip(";").rstrip()

    @property
    def where(self) -> str:
        """The query, on one line, or what begins it."""
        line = " ".join(self.query.split())
        return line if len(line) <= _SHOWN_SQL else f"{line[: _SHOWN_SQL - 2]} …"

    def position_kind(self, kind: FeedKind) -> PositionKind:
        """Partitions are replaced as a whole; a table gets a version."""
        return PositionKind.SNAPSHOT if kind is FeedKind.TABLE else PositionKind.WINDOW

    def reading(self, kind: FeedKind) -> str:  # noqa: ARG002  `SystemSource`
        """``SQL``."""
        return "SQL"


#: Characters of a mart's query that stand for it in lists.
_SHOWN_SQL = 60

#: Where the systems are listed that feeds can be exported from. They stand above this module and import it, so they are
#: found by name, when the first feed or the first setting is read: wherever that is, the list is there (ADR 016).
_SYSTEMS = "datalake_assets.sources.systems"
#: Sources that are not exported: something else writes their files.
_NOT_EXPORTED: Mapping[str, type[SourceModel]] = {
    "folder": FolderSource,
    "iceberg": IcebergTableSource,
    "delta": DeltaTableSource,
    "asset": AssetSource,
}
#: What is adopted, for messages.
ADOPTED: Mapping[str, str] = {
    "folder": "an adopted folder",
    "iceberg": "an adopted Iceberg table",
    "delta": "an adopted Delta table",
}


class _Declared(Protocol):
    """A system's declaration, as far as this module needs it."""

    @property
    def model(self) -> type[SystemSource]:
        """What a feed may say of it."""


def declared_systems() -> Mapping[str, Any]:
    """The systems that feeds can be exported from, by type; what they are is `datalake_assets.sources.base.System`."""
    systems: Mapping[str, Any] = import_module(_SYSTEMS).systems()
    return systems


def as_declared(source: Any) -> Any:
    """A source's document as its own model; documents may leave the type out, as they could before there were folders.

    Raises:
        ValueError: There is no source of this type.
    """
    if not isinstance(source, dict):
        return source
    systems: Mapping[str, _Declared] = declared_systems()
    wanted = source.get("type", next(iter(systems)))
    if wanted in systems:
        return systems[wanted].model.model_validate(source)
    if wanted not in _NOT_EXPORTED:
        raise ValueError(f"there is no source of type {wanted!r}; take one of {', '.join(sorted(systems))}")
    return _NOT_EXPORTED[wanted].model_validate(source)

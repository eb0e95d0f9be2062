"""What ksqlDB declares of itself as a source: what a feed may say of it, its settings, its options.

Loaded wherever feeds are read, so nothing heavy is imported before the connection.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from datalake_assets.errors import ConfigError, InvalidFeed
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind, PositionKind, SystemSource
from datalake_assets.settings import Settings
from datalake_assets.sources.base import FeedOption, System

__all__ = ["KSQLDB", "ROWTIME", "KsqlDBMode", "KsqlDBSettings", "KsqlDBSource", "declared"]

#: The record's own timestamp.
ROWTIME = "ROWTIME"


class KsqlDBMode(StrEnum):
    """How a ksqlDB stream is read.

    ``offsets``: rows carry their source partition and offset, so that each is landed exactly once whatever its day: a
    push query with ROWPARTITION and ROWOFFSET read until caught up, or, where ``offset_columns`` names ordinary columns
    that carry them, a pull query. ``pull``: bounded pull queries; a partition's rows are replaced as a whole.
    """

    OFFSETS = "offsets"
    PULL = "pull"


class KsqlDBSource(SystemSource):
    """Rows of a ksqlDB stream or table, read over REST.

    Attributes:
        object: The stream's or table's name as ksqlDB lists it (usually upper case).
        mode: How a stream is read; ignored for tables, which are always pulled whole.
        offset_columns: The two ordinary columns that carry source partition and offset, if the stream has them; it must
            be partitioned as its source is, or rows come out of order and the read is refused.
        idle_s: Seconds without a new row after which a push query counts as caught up, after the first.
        rename: Column names in the lake by name at the source, where the lower-cased name cannot serve.
        properties: Query properties sent along, e.g. ``{"ksql.query.pull.table.scan.enabled": true}``.
    """

    type: Literal["ksqldb"] = "ksqldb"
    object: Annotated[str, Field(min_length=1)]
    mode: KsqlDBMode = KsqlDBMode.OFFSETS
    offset_columns: tuple[str, str] | None = None
    idle_s: Annotated[float, Field(gt=0, le=3600)] = 3.0
    rename: dict[str, str] = Field(default_factory=dict)
    properties: dict[str, str | int | bool] = Field(default_factory=dict)

    @property
    def where(self) -> str:
        """What is read, for a person."""
        return self.object

    @property
    def time_column(self) -> str:
        """The lake name of ROWTIME."""
        return self.rename.get(ROWTIME, ROWTIME.lower())

    @property
    def can_be_followed(self) -> bool:
        """Numbered rows come by a push query."""
        return self.mode is KsqlDBMode.OFFSETS

    def ends_by_silence(self, kind: FeedKind) -> bool:
        """Push queries have no other end."""
        return self.position_kind(kind) is PositionKind.OFFSETS and self.offset_columns is None

    def position_kind(self, kind: FeedKind) -> PositionKind:
        """Snapshots of tables; offsets or windows of streams, by mode."""
        if kind is FeedKind.TABLE:
            return PositionKind.SNAPSHOT
        return PositionKind.OFFSETS if self.mode is KsqlDBMode.OFFSETS else PositionKind.WINDOW

    def reading(self, kind: FeedKind) -> str:
        """``snapshots``, the mode, or ``pulled offsets``."""
        if kind is FeedKind.TABLE:
            return "snapshots"
        return "pulled offsets" if self.offset_columns else self.mode.value

    def problem(self) -> str | None:
        """Names that no columns can have, or that two would share."""
        from datalake_assets.core.schema import lake_names  # noqa: PLC0415  Arrow, and every command reads feeds

        if self.offset_columns is not None and len(set(self.offset_columns)) == 1:
            return f"source.offset_columns: partition and offset cannot both be {self.offset_columns[0]!r}"
        try:
            lake_names(tuple(self.rename), feed=self.object, rename=self.rename)
        except InvalidFeed as error:
            return f"source.rename: {error.reason}"
        return None


class KsqlDBSettings(Settings):
    """Settings of ksqlDB.

    Attributes:
        ksqldb_url: The ksqlDB server; unset, a demo lake reads its embedded server and any other lake is an error.
        ksqldb_user: User for HTTP Basic authentication.
        ksqldb_password: Its password.
        ksqldb_ca_file: PEM file of the authority that signed the server's certificate, if it is not a public one.
        ksqldb_timeout_s: Seconds to wait for a connection or for the next bytes of an answer.
    """

    ksqldb_url: str | None = None
    ksqldb_user: str | None = None
    ksqldb_password: SecretStr | None = None
    ksqldb_ca_file: str | None = None
    ksqldb_timeout_s: Annotated[float, Field(gt=0)] = 60.0


def declared(feed: Feed) -> KsqlDBSource:
    """What a feed says of ksqlDB.

    Raises:
        ConfigError: It reads something else.
    """
    source = feed.exported_from
    if isinstance(source, KsqlDBSource):
        return source
    raise ConfigError(f"feed {feed.name!r} reads {source.type}, not ksqldb")


KSQLDB = System(
    model=KsqlDBSource,
    connect="datalake_assets.sources.ksqldb.source:connect",
    settings=KsqlDBSettings,
    options=(
        FeedOption("--object", "object", "Name at the source, as ksqlDB lists it.", "OBJ", required=True),
        FeedOption(
            "--mode",
            "mode",
            "How a stream is read.  [default: offsets]",
            choices=tuple(mode.value for mode in KsqlDBMode),
            streams_only=True,
        ),
        FeedOption(
            "--offset-columns",
            "offset_columns",
            "Columns that carry source partition and offset.",
            "PART,OFF",
            shape="list",
            streams_only=True,
        ),
        FeedOption("--rename", "rename", "Name of a column in the lake.", "OLD=NEW", shape="pairs"),
    ),
    discovery="Add every stream and table of the server that can be landed.",
)

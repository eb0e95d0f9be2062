"""What databases declare of themselves as a source: what a feed may say of one, their settings, their options.

Loaded wherever feeds are read, so nothing heavy is imported before the connection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SecretStr, field_validator, model_validator

from datalake_assets.errors import ConfigError, InvalidFeed
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind, PositionKind, SystemSource
from datalake_assets.named_documents import read_named_file
from datalake_assets.policies import Duration
from datalake_assets.settings import Settings
from datalake_assets.sources.base import FeedOption, System

__all__ = ["SQL", "SqlSettings", "SqlSource", "databases", "declared_sql"]

#: The database of feeds that name none.
DEFAULT = "default"
_NAME = r"^[a-z][a-z0-9_]{0,63}$"


class SqlSource(SystemSource):
    """A table, a view or a query of a database.

    A table of the lake is a snapshot of it. A stream is read incrementally by its cursor column; without one, its
    partitions are pulled, and replaced, by the time column.

    Attributes:
        database: Its name in the settings; where that is, and who reads it, feeds do not say.
        object: A table or view as the database lists it, like ``public.orders``; parts with dots in them in double
            quotes. ``shop:public.orders`` names the database, too.
        query: A SELECT instead of it.
        cursor: The column by which rows are read on: an integer, a date or a time, which never changes, or grows with
            each change of its row. Several rows may share a value.
        lag: How long after its cursor value was given a row may become visible, at the most. None: as long as the
            database itself can prove, which PostgreSQL and SQLite can.
        columns: Types of columns by their names in the lake, where the database tells none that is exact: those of
            dropped files, like ``decimal(18, 2)``.
        rename: Names in the lake by names in the database, where the lower-cased name cannot serve.
        batch_rows: Rows that are held at once, where the database's driver gives them one by one.
    """

    shared_numbers: ClassVar[bool] = True

    type: Literal["sql"] = "sql"
    database: Annotated[str, Field(pattern=_NAME)] = DEFAULT
    object: str = ""
    query: str = ""
    cursor: str | None = None
    lag: Duration | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    rename: dict[str, str] = Field(default_factory=dict)
    batch_rows: Annotated[int, Field(ge=1, le=1_000_000)] = 10_000

    @model_validator(mode="before")
    @classmethod
    def _database_of_object(cls, document: Any) -> Any:
        """``shop:orders`` is the table ``orders`` of the database ``shop``."""
        named = document.get("object") if isinstance(document, dict) else None
        if isinstance(named, str) and ":" in named and "database" not in document:
            database, _, table = named.partition(":")
            return {**document, "database": database, "object": table}
        return document

    @field_validator("query")
    @classmethod
    def _is_one_query(cls, value: str) -> str:
        return value.strip().rstrip(";").rstrip()

    @model_validator(mode="after")
    def _reads_one_thing(self) -> SqlSource:
        if bool(self.object) == bool(self.query):
            msg = "name one of object and query"
            raise ValueError(msg)
        return self

    @property
    def where(self) -> str:
        """What is read, for a person."""
        return f"{self.database}:{self.object}" if self.object else f"a query of {self.database}"

    @property
    def time_column(self) -> str | None:
        """The lake name of the cursor column, by which a stream is partitioned that names no other."""
        return None if self.cursor is None else self.rename.get(self.cursor, self.cursor.lower())

    def position_kind(self, kind: FeedKind) -> PositionKind:
        """Snapshots of tables; of streams the cursor's values are offsets; without a cursor, windows."""
        if kind is FeedKind.TABLE:
            return PositionKind.SNAPSHOT
        return PositionKind.WINDOW if self.cursor is None else PositionKind.OFFSETS

    def reading(self, kind: FeedKind) -> str:
        """``snapshots``, ``windows``, or the cursor column."""
        if kind is FeedKind.TABLE:
            return "snapshots"
        return "windows" if self.cursor is None else f"by {self.cursor}"

    def problem(self) -> str | None:
        """Types that are none, and names that no columns can have."""
        from datalake_assets.core.schema import lake_names  # noqa: PLC0415  Arrow, and every command reads feeds
        from datalake_assets.sources.files.text_values import named_type  # noqa: PLC0415  the same

        for name, kind in self.columns.items():
            try:
                named_type(kind)
            except ValueError as error:
                return f"source.columns: {name!r}: {error}"
        try:
            lake_names(tuple(self.rename), feed=self.where, rename=self.rename)
        except InvalidFeed as error:
            return f"source.rename: {error.reason}"
        return None


class SqlSettings(Settings):
    """Settings of databases.

    Attributes:
        sql_url: URL, with user and password, of the database of feeds that name none: ``postgresql://…``,
            ``sqlite:////path``, ``mysql+pymysql://…`` or any other of SQLAlchemy's, ``adbc+NAME://…`` for the ADBC
            driver ``adbc_driver_NAME``.
        sql_databases: More of them: a JSON object of URLs by the names that feeds give.
        sql_databases_file: The file that has that object instead.
        sql_timeout_s: Seconds to wait for a connection, and for open transactions of others that may still write rows
            below the highest cursor value.
    """

    sql_url: SecretStr | None = None
    sql_databases: SecretStr | None = None
    sql_databases_file: str | None = None
    sql_timeout_s: Annotated[float, Field(gt=0)] = 60.0


def databases(settings: SqlSettings) -> Mapping[str, str]:
    """URLs by the databases' names.

    Raises:
        ConfigError: They are not written as such; says no value.
    """
    found = {} if settings.sql_url is None else {DEFAULT: settings.sql_url.get_secret_value()}
    if settings.sql_databases is not None:
        found |= _urls(settings.sql_databases.get_secret_value(), "sql_databases")
    if settings.sql_databases_file is not None:
        try:
            text = read_named_file(settings.sql_databases_file).decode()
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"sql_databases_file: it cannot be read: {type(error).__name__}") from None
        found |= _urls(text, "sql_databases_file")
    return found


def _urls(text: str, setting: str) -> dict[str, str]:
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict) or not all(isinstance(each, str) and "://" in each for each in document.values()):
        raise ConfigError(f'{setting}: write a JSON object of URLs by name, like {{"shop": "postgresql://…"}}')
    return document


def declared_sql(feed: Feed) -> SqlSource:
    """What a feed says of a database.

    Raises:
        ConfigError: It reads something else.
    """
    source = feed.exported_from
    if isinstance(source, SqlSource):
        return source
    raise ConfigError(f"feed {feed.name!r} reads {source.type}, not sql")


SQL = System(
    model=SqlSource,
    connect="datalake_assets.sources.sql.sql_source:connect",
    settings=SqlSettings,
    options=(
        FeedOption("--database", "database", "Name of a database in the settings.  [default: default]", "NAME"),
        FeedOption("--object", "object", "Table or view, as the database lists it.", "OBJ"),
        FeedOption("--query", "query", "A SELECT instead of a table.", "SQL"),
        FeedOption("--cursor", "cursor", "Column by which rows are read on.", "COL", streams_only=True),
        FeedOption("--lag", "lag", "How late a row may become visible.", "DURATION", streams_only=True),
        FeedOption("--column-type", "columns", "Type of a column.", "NAME=TYPE", shape="pairs"),
        FeedOption("--rename", "rename", "Name of a column in the lake.", "OLD=NEW", shape="pairs"),
    ),
    discovery="Add every table of the databases as snapshots.",
)

"""A Hive metastore, by SQL: the statements that Spark SQL, Hive and Athena take, and a catalog that runs them.

Who has a session (``spark.sql``) gives it to `HiveCatalog`; who has not prints the statements and runs them where one
is. Printed ones ask nothing, so that they can be run again; a change of columns needs the table made anew, which loses
nothing: it is external.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, Self

from datalake_assets.catalog.base import OWNER, Known, Outcome, State
from datalake_assets.catalog.entries import Entry, as_uri
from datalake_assets.catalog.views import View, translated
from datalake_assets.errors import ConfigError
from datalake_assets.lake.table import Logged

__all__ = ["Dialect", "HiveCatalog", "ddl", "why_not_printed"]

#: Engines whose statements differ in how views are written.
Dialect = Literal["spark", "athena"]
#: Partitions of one statement.
_AT_ONCE = 100
_DIGEST = "datalake.digest"
_VIEW = "datalake.view"
_FEED = "datalake.feed"
_UNSET = re.compile(r"does not have property")

#: Runs one statement, and gives its rows.
Run = Callable[[str], Sequence[Sequence[Any]]]


def _quoted(name: str) -> str:
    return f"`{name.replace('`', '``')}`"


def _text(value: str) -> str:
    """A literal; Hive and Spark take a backslash for the beginning of something else."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return f"'{escaped}'"


def ddl(
    entries: Sequence[Entry], views: Iterable[View], *, database: str, dialect: Dialect = "spark", replace: bool = False
) -> Iterator[str]:
    """The statements that enter feeds and views; running them again changes nothing.

    Args:
        entries: The feeds.
        views: The views.
        database: The database, which is created.
        dialect: Whose SQL the views are written in.
        replace: Also make tables anew, for columns that have changed; they are external, so that data stay.

    Raises:
        ConfigError: A view cannot be written in the dialect.
    """
    yield f"CREATE DATABASE IF NOT EXISTS {_quoted(database)}"
    for entry in entries:
        if why_not_printed(entry, dialect, replace=replace):
            continue
        if replace:
            yield f"DROP TABLE IF EXISTS {_place(database, entry.name)}"
        if entry.logged is not None:
            yield _registered(entry, entry.logged, database, dialect)
            continue
        yield _create(entry, database, what="CREATE EXTERNAL TABLE IF NOT EXISTS")
        if entry.version:
            yield _located(database, entry)
        yield from _partitions(database, entry, list(entry.partitions))
    names = [each.name for each in entries]
    for view in views:
        text = translated(view, dialect=dialect, database=database, feeds=names)
        if dialect == "athena":
            yield f'CREATE OR REPLACE VIEW "{database}"."{view.name}" AS {text}'
        else:
            yield f"CREATE OR REPLACE VIEW {_place(database, view.name)} AS {text}"


def why_not_printed(entry: Entry, dialect: Dialect, *, replace: bool) -> str:
    """Why `ddl` has no statement for a feed; empty if it has one."""
    if entry.logged is None or entry.logged.format == "delta":
        return ""
    if dialect == "athena":
        return "Athena has no statement for a table that is there already; 'datalake catalog sync --to glue' enters it"
    if not replace:
        return "an Iceberg table is registered as it is by now, in the place of what was there: print it with --replace"
    return ""


def _registered(entry: Entry, logged: Logged, database: str, dialect: Dialect) -> str:
    """The statement for a table with a log, by which the engine reads it."""
    place = _place(database, entry.name)
    if logged.format == "iceberg":
        table = _text(f"{database}.{entry.name}")
        metadata = _text(as_uri(logged.metadata))
        return f"CALL spark_catalog.system.register_table(table => {table}, metadata_file => {metadata})"
    location = _text(as_uri(logged.location))
    if dialect == "athena":
        return f"CREATE EXTERNAL TABLE IF NOT EXISTS {place} LOCATION {location} TBLPROPERTIES ('table_type' = 'DELTA')"
    return f"CREATE TABLE IF NOT EXISTS {place} USING DELTA LOCATION {location}"


def _place(database: str, name: str) -> str:
    return f"{_quoted(database)}.{_quoted(name)}"


def _create(entry: Entry, database: str, *, what: str) -> str:
    columns = ", ".join(map(_column, entry.hive_columns))
    parts = ", ".join(f"{_quoted(name)} string" for name in entry.partition_columns)
    told = {OWNER: entry.lake, _FEED: entry.feed.path, _DIGEST: entry.digest}
    properties = ", ".join(f"{_text(name)} = {_text(value)}" for name, value in told.items())
    lines = [
        f"{what} {_place(database, entry.name)} ({columns})",
        f"COMMENT {_text(entry.feed.description)}" if entry.feed.description else "",
        f"PARTITIONED BY ({parts})" if parts else "",
        f"STORED AS PARQUET LOCATION {_text(as_uri(entry.location))}",
        f"TBLPROPERTIES ({properties})",
    ]
    return " ".join(filter(None, lines))


def _column(column: Any) -> str:
    comment = f" COMMENT {_text(column.comment)}" if column.comment else ""
    return f"{_quoted(column.name)} {column.hive_type}{comment}"


def _located(database: str, entry: Entry) -> str:
    return f"ALTER TABLE {_place(database, entry.name)} SET LOCATION {_text(as_uri(entry.location))}"


def _partitions(database: str, entry: Entry, which: Iterable[tuple[str, ...]]) -> Iterator[str]:
    left = iter(which)
    while some := list(islice(left, _AT_ONCE)):
        listed = " ".join(
            f"PARTITION ({_spec(entry, values)}) LOCATION {_text(as_uri(entry.partitions[values]))}" for values in some
        )
        yield f"ALTER TABLE {_place(database, entry.name)} ADD IF NOT EXISTS {listed}"


def _spec(entry: Entry, values: Sequence[str]) -> str:
    pairs = zip(entry.partition_columns, values, strict=True)
    return ", ".join(f"{_quoted(name)} = {_text(value)}" for name, value in pairs)


class HiveCatalog:
    """A database of a Hive metastore; implements `Catalog`.

    Args:
        run: Runs one statement of Spark SQL, and gives its rows: ``lambda text: spark.sql(text).collect()``.
        database: The database.
        lake: The lake's address.
    """

    kind = "hive"

    def __init__(self, run: Run, *, database: str, lake: str) -> None:
        self._run, self._database, self._lake = run, database, lake

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def has_database(self) -> bool:
        """Implements `Catalog`."""
        return any(row[0] == self._database for row in self._run(f"SHOW DATABASES LIKE {_text(self._database)}"))

    def create_database(self) -> None:
        """Implements `Catalog`."""
        self._run(f"CREATE DATABASE IF NOT EXISTS {_quoted(self._database)}")

    def known(self) -> dict[str, Known]:
        """Implements `Catalog`."""
        place = _quoted(self._database)
        views = {row[1] for row in self._run(f"SHOW VIEWS IN {place}")}
        names = [row[1] for row in self._run(f"SHOW TABLES IN {place}") if not row[2]]  # not temporary
        return {name.lower(): Known(name, self._property(name, OWNER), name in views) for name in names}

    def _property(self, name: str, key: str) -> str:
        rows = self._run(f"SHOW TBLPROPERTIES {_place(self._database, name)} ({_text(key)})")
        value = str(rows[0][1]) if rows else ""
        return "" if _UNSET.search(value) else value

    def why_not(self, entry: Entry) -> str:
        """Implements `Catalog`: Spark keeps the properties of such a table in its log, which is not ours to write."""
        if entry.logged is None:
            return ""
        return f"its own log knows it: 'datalake catalog ddl' prints what has Spark read it as {entry.logged.format}"

    def needs(self, entry: Entry) -> bool:
        """Implements `Catalog`."""
        if self._property(entry.name, _DIGEST) != entry.digest:
            return True
        return bool(entry.partition_columns) and self._there(entry) != set(entry.partitions)

    def _there(self, entry: Entry) -> set[tuple[str, ...]]:
        rows = self._run(f"SHOW PARTITIONS {_place(self._database, entry.name)}")
        return {tuple(_unescaped(part.partition("=")[2]) for part in str(row[0]).split("/")) for row in rows}

    def create(self, entry: Entry) -> Outcome:
        """Implements `Catalog`."""
        self._run(_create(entry, self._database, what="CREATE EXTERNAL TABLE IF NOT EXISTS"))
        if self._property(entry.name, OWNER) != self._lake:
            raise ConfigError(f"table {entry.name!r} of {self._database} is not this lake's; it is left alone")
        return self._with_partitions(entry, "created")

    def update(self, entry: Entry) -> Outcome:
        """Implements `Catalog`."""
        if self._property(entry.name, OWNER) != self._lake:
            raise ConfigError(f"table {entry.name!r} of {self._database} is not this lake's; it is left alone")
        if self._property(entry.name, _DIGEST) == entry.digest:
            return self._with_partitions(entry, "current")
        rows = self._run(f"DESCRIBE {_place(self._database, entry.name)}")
        there = _described(rows)
        wanted = [(each.name.lower(), each.hive_type) for each in entry.hive_columns]
        parts = [(name, "string") for name in entry.partition_columns]
        if (
            there[len(there) - len(parts) :] != parts
            or wanted[: len(there) - len(parts)] != there[: len(there) - len(parts)]
        ):
            self._run(f"DROP TABLE IF EXISTS {_place(self._database, entry.name)}")  # external: data stay
            return self.create(entry)
        new = entry.hive_columns[len(there) - len(parts) :]
        place = _place(self._database, entry.name)
        if new:
            self._run(f"ALTER TABLE {place} ADD COLUMNS ({', '.join(map(_column, new))})")
        self._run(_located(self._database, entry))
        self._run(f"ALTER TABLE {place} SET TBLPROPERTIES ({_text(_DIGEST)} = {_text(entry.digest)})")
        return self._with_partitions(entry, "updated")

    def _with_partitions(self, entry: Entry, state: State) -> Outcome:
        there = self._there(entry) if entry.partition_columns else set()
        added = [values for values in entry.partitions if values not in there]
        gone = sorted(there.difference(entry.partitions))
        for statement in _partitions(self._database, entry, added):
            self._run(statement)
        for values in gone:
            spec = _spec(entry, values)
            self._run(f"ALTER TABLE {_place(self._database, entry.name)} DROP IF EXISTS PARTITION ({spec})")
        left = ", ".join(entry.unreadable)
        detail = f"left out: {left}, of types or names that Hive has not" if left else ""
        changed: State = "updated" if state == "current" and (added or gone) else state
        return Outcome(self.kind, entry.name, changed, len(added), len(gone), 0, detail)

    def put_view(self, view: View) -> Outcome:
        """Implements `Catalog`."""
        known = self.known()
        feeds = [name for name, each in known.items() if each.owner == self._lake and not each.is_view]
        text = translated(view, dialect="spark", database=self._database, feeds=feeds)
        place, is_there = _place(self._database, view.name), view.name in known
        if is_there and self._property(view.name, _VIEW) == text:
            return Outcome(self.kind, view.name, "current")
        told = f"TBLPROPERTIES ({_text(OWNER)} = {_text(self._lake)}, {_text(_VIEW)} = {_text(text)})"
        comment = f"COMMENT {_text(view.description)} " if view.description else ""
        self._run(f"CREATE OR REPLACE VIEW {place} {comment}{told} AS {text}")
        return Outcome(self.kind, view.name, "updated" if is_there else "created")

    def drop(self, known: Known) -> None:
        """Implements `Catalog`."""
        what = "VIEW" if known.is_view else "TABLE"
        self._run(f"DROP {what} IF EXISTS {_place(self._database, known.name)}")


def _described(rows: Iterable[Sequence[Any]]) -> list[tuple[str, str]]:
    """Columns and types of a DESCRIBE, those of partitions last, without what it tells of them a second time."""
    found: list[tuple[str, str]] = []
    for row in rows:
        if not row[0] or str(row[0]).startswith("#"):
            break
        found.append((str(row[0]).lower(), str(row[1])))
    return found


def _unescaped(value: str) -> str:
    """A partition's value as SHOW PARTITIONS escapes it."""
    return re.sub(r"%([0-9A-Fa-f]{2})", lambda found: chr(int(found[1], 16)), value)

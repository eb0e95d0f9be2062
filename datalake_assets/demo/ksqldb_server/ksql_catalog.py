"""The objects that the demo server knows: what a query or a DESCRIBE may name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from datalake_assets.demo.ksqldb_server.faults import Faults
from datalake_assets.demo.ksqldb_server.ksql_types import SqlType, scalar
from datalake_assets.demo.ksqldb_server.stream_data import STREAMS
from datalake_assets.demo.ksqldb_server.table_data import PLAIN_TABLES, TABLES

__all__ = ["Catalog", "SourceColumn", "SourceObject"]


@dataclass(frozen=True, slots=True)
class SourceColumn:
    """A column as clients see it.

    Attributes:
        name: Its name.
        kind: Its type.
        key: Whether it is the key.
        made_from: The generated column that its values come from; None for one that a fault has added.
    """

    name: str
    kind: SqlType
    key: bool
    made_from: str | None


@dataclass(frozen=True, slots=True)
class SourceObject:
    """A stream or a table."""

    name: str
    is_table: bool
    queryable: bool
    columns: tuple[SourceColumn, ...]
    derived_from: str
    statement: str

    @property
    def topic(self) -> str:
        """The Kafka topic."""
        return self.name if self.derived_from else self.name.lower()


class Catalog:
    """All objects, with the schema changes that faults make."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._objects = _streams() | _tables()

    def find(self, name: str) -> SourceObject | None:
        """The object of this name, as it is now."""
        found = self._objects.get(name)
        return None if found is None else self._changed(found)

    def all(self, *, tables: bool) -> list[SourceObject]:
        """All tables, or all streams."""
        return [self._changed(found) for found in self._objects.values() if found.is_table == tables]

    def _changed(self, found: SourceObject) -> SourceObject:
        change = self._faults.take("schema_change", found.name)
        if change is None:
            return found
        *rest, last = found.columns
        changed = {
            "add": (*found.columns, SourceColumn("ADDED_COLUMN", scalar("STRING"), key=False, made_from=None)),
            "drop": tuple(rest),
            "rename": (*rest, replace(last, name=f"{last.name}_RENAMED")),
            "retype": (*rest, SourceColumn(last.name, scalar("BOOLEAN"), key=False, made_from=None)),
        }
        return replace(found, columns=changed[str(change)])


def _streams() -> dict[str, SourceObject]:
    return {
        name: SourceObject(
            name,
            is_table=False,
            queryable=True,
            columns=tuple(SourceColumn(c.name, c.kind, c.key, c.name) for c in spec.columns),
            derived_from="" if spec.facts == name else spec.facts,
            statement=spec.statement,
        )
        for name, spec in STREAMS.items()
    }


def _tables() -> dict[str, SourceObject]:
    return {
        name: SourceObject(
            name,
            is_table=True,
            queryable=bool(spec.source),
            columns=tuple(SourceColumn(column, kind, column == spec.key, column) for column, kind in spec.columns),
            derived_from=spec.source,
            statement=spec.statement,
        )
        for name, spec in (TABLES | PLAIN_TABLES).items()
    }

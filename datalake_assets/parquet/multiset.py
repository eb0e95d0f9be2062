"""A checksum of rows that does not depend on their order, fast enough to be the rule: DuckDB hashes, we add up.

Equal multisets of rows have equal checksums; rows lost, doubled or changed, or values that moved to another row, show.
It guards against accidents, not against an adversary. Where DuckDB cannot take a type, `row_hashes` does, slower.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.types as pt

from datalake_assets.parquet.fingerprint import row_hashes

__all__ = ["Multiset", "MultisetHasher"]

_MODULUS = 1 << 64


@dataclass(frozen=True, slots=True)
class Multiset:
    """A number of rows and the sum of their hashes, modulo 2**64."""

    rows: int = 0
    total: int = 0

    def __add__(self, other: Multiset) -> Multiset:
        return Multiset(self.rows + other.rows, (self.total + other.total) % _MODULUS)


class MultisetHasher:
    """Hashes rows of one schema; safe to use from threads.

    Args:
        schema: Of all tables to come.
    """

    def __init__(self, schema: pa.Schema) -> None:
        import duckdb  # noqa: PLC0415  a tenth of a second, which exports and `definitions` need not pay

        self._schema, self._refusals = schema, (duckdb.Error, pa.ArrowException)
        columns = ", ".join(f"c{index}" for index in range(len(schema)))
        # a constant first: DuckDB hashes zero to zero
        self._query = f"SELECT sum(hash(42, {columns})) FROM rows"  # noqa: S608  the names are ours
        self._session = duckdb.connect()
        self._session.execute("SET threads = 1")
        self._is_simple = bool(len(schema)) and self._duckdb_takes_it()

    def of(self, table: pa.Table) -> Multiset:
        """The multiset of a table's rows."""
        if not table.num_rows:
            return Multiset()
        if self._is_simple:
            return Multiset(table.num_rows, self._sum(table))
        total = sum(int(row_hashes(batch).sum()) for batch in table.to_batches())
        return Multiset(table.num_rows, total % _MODULUS)

    def close(self) -> None:
        """Ends the session."""
        self._session.close()

    def _sum(self, table: pa.Table) -> int:
        plain = pa.table(
            [_plain(column) for column in table.columns], [f"c{index}" for index in range(len(table.schema))]
        )
        with self._session.cursor() as cursor:
            cursor.register("rows", plain)
            found = cursor.execute(self._query).fetchone()
        return int(found[0] or 0) % _MODULUS if found else 0

    def _duckdb_takes_it(self) -> bool:
        try:
            self._sum(pa.table([pa.nulls(1, field.type) for field in self._schema], schema=_nullable(self._schema)))
        except self._refusals:
            return False
        return True


def _nullable(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_nullable(True) for field in schema])


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Times as the integers that they are: DuckDB would round some and refuse others."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type))
    if pt.is_time32(kind) or pt.is_date32(kind):
        return _viewed(column, pa.int32())
    if any(is_wide(kind) for is_wide in (pt.is_timestamp, pt.is_time64, pt.is_date64, pt.is_duration)):
        return _viewed(column, pa.int64())
    return column


def _viewed(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([chunk.view(kind) for chunk in column.chunks], kind)

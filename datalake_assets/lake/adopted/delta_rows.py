"""The rows of a Delta table that Arrow alone would read wrongly, as the library's SQL engine reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError

from datalake_assets.core.rules import identifier
from datalake_assets.lake.scan import BoundedDataset

__all__ = ["QueriedDataset", "line_of"]


class QueriedDataset(BoundedDataset):
    """The rows of a table as the library's SQL engine reads them, with its deletion vectors and column mapping."""

    _table: DeltaTable
    _where: str
    _refusal: Callable[[], str]

    @classmethod
    def of(
        cls, table: DeltaTable, schema: pa.Schema, paths: Iterable[str], *, where: str, refusal: Callable[[], str]
    ) -> QueriedDataset:
        """The rows that a condition is true of.

        Args:
            table: The table.
            schema: Its columns.
            paths: Of the files that have them, for whoever asks the dataset for such.
            where: The condition, in the library's SQL.
            refusal: Says why the library must not be asked for them, when they are read; empty if it may be.
        """
        named = ds.FileSystemDataset.from_paths(
            sorted(paths),
            schema=schema,
            format=ds.ParquetFileFormat(),
            filesystem=pafs.LocalFileSystem(),  # nothing is opened by it
        )
        made = cls(list(named.get_fragments()), named.schema, named.format, named.filesystem)
        made._table, made._where, made._refusal = table, where, refusal
        return made

    def _batches(self, columns: Any, where: ds.Expression | None) -> Iterator[pa.RecordBatch]:
        scanner = ds.Scanner.from_batches(
            self._rows(), schema=self.schema, columns=columns, filter=where, batch_readahead=1, fragment_readahead=1
        )
        yield from scanner.to_batches()

    def _rows(self) -> Iterator[pa.RecordBatch]:
        chosen = ", ".join(map(identifier, self.schema.names))
        if reason := self._refusal():
            raise OSError(f"deltalake cannot read the table: {reason}")
        try:
            query = f"SELECT {chosen} FROM t WHERE {self._where}"  # noqa: S608  all are quoted
            answer = QueryBuilder().register("t", self._table).execute(query)
            for batch in pa.RecordBatchReader.from_stream(answer):
                columns = [column.cast(field.type) for column, field in zip(batch.columns, self.schema, strict=True)]
                yield pa.RecordBatch.from_arrays(columns, schema=self.schema)
        except DeltaError as error:
            raise OSError(f"deltalake cannot read the table: {line_of(error)}") from error


def line_of(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__

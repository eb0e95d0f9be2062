"""The rows of a Delta table: those that Arrow alone would read wrongly, and whether files have the same as others."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.types as pt
from deltalake import DeltaTable, QueryBuilder
from deltalake.exceptions import DeltaError

from datalake_assets.core.rules import identifier
from datalake_assets.lake.nested_scans import scanner_of
from datalake_assets.lake.scan import BoundedDataset
from datalake_assets.lake.store.base import Store
from datalake_assets.parquet.adopted_footer import INT96_UNIT
from datalake_assets.parquet.decoding import open_parquet, tables
from datalake_assets.parquet.failed_requests import answered
from datalake_assets.parquet.fingerprint import Multiset, MultisetHasher
from datalake_assets.parquet.schemas import conform_table

__all__ = ["FarValue", "QueriedDataset", "believed_columns", "have_same_values", "line_of", "opened", "told_rows"]

logger = logging.getLogger(__name__)


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
        yield from scanner_of(self._rows(), self.schema, columns=columns, where=where).to_batches()

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


def believed_columns(schema: pa.Schema, given: Collection[str], actions: pa.Table) -> pa.Schema:
    """The columns whose statistics in the log Arrow may have: it takes what they say for true of every row of a file.

    - Bounds of floats say nothing of rows that are NaN, so that `x < 5` were true of these, and `not x < 5` of no row.
    - Those of decimals are JSON numbers, which writers take through a float: beyond its digits they lie beside values.
    - Of a file that lacks one (the column came later, or it holds a time beyond the year 9999), the library says that
      all its values are above null, so that `x is null` were true of no row; and where nulls are not counted, that
      there are none.

    Args:
        schema: The table's columns.
        given: Those that partitions state: what these say is a value, and no bound.
        actions: The files as the library tells of them, one column for each statistic.
    """

    def is_believed(field: pa.Field) -> bool:
        kind, names = field.type, [f"{which}.{field.name}" for which in ("null_count", "min", "max")]
        if pt.is_floating(kind) or (pt.is_decimal(kind) and kind.precision > sys.float_info.dig):
            return False
        if not all(name in actions.column_names and not actions[name].null_count for name in names):
            return False
        return not any(_is_far(bound) for name in names for bound in pc.min_max(actions[name]).values())

    return pa.schema([each for each in schema if each.name in given or is_believed(each)])


class FarValue(str):
    """The text of a value that Python has none for: a day or a time of another year than 1 to 9999."""

    __slots__ = ()


def told_rows(actions: pa.Table, names: Iterable[str]) -> list[dict[str, Any]]:
    """Some of what the library tells of files, file by file; what Python has no value for is a `FarValue`."""
    columns = {name: actions[name] for name in names if name in actions.column_names}
    values = ([_value(each) for each in column] for column in columns.values())
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def _value(scalar: pa.Scalar) -> Any:
    return FarValue(scalar.cast(pa.string()).as_py()) if _is_far(scalar) else scalar.as_py()


def _is_far(scalar: pa.Scalar) -> bool:
    try:
        scalar.as_py()
    except (OverflowError, ValueError):
        return True
    return False


Opens = Callable[[str], AbstractContextManager[pa.NativeFile]]


@contextmanager
def opened(store: Store, key: str) -> Iterator[pa.NativeFile]:
    """A file of a table, until the context ends; a request that fails is told from a file that cannot be read."""
    with answered(f"{store.uri}/{key}"), store.filesystem().open_input_file(store.path(key)) as source:
        yield source


def have_same_values(before: Iterable[str], after: Iterable[str], schema: pa.Schema, opens: Opens) -> bool:
    """Whether some files have the rows that others have, in whatever order, as Arrow reads them.

    True, too, where Arrow cannot bring those of before into the table's types, and so cannot judge; the log says so.

    Args:
        before: Paths of files.
        after: Paths of files with the table's columns as they are now.
        schema: These, but for those that partitions state.
        opens: Opens a file by its path.

    Raises:
        OSError: A file cannot be read.
        pa.ArrowException: Likewise, or one of ``after`` has other types.
    """
    with closing(MultisetHasher(schema)) as hasher:
        try:
            expected = _multiset(before, schema, opens, hasher)
        except pa.ArrowException as error:
            logger.warning("values of what was merged are not compared: %s", line_of(error))
            return True
        return _multiset(after, schema, opens, hasher) == expected


def _multiset(paths: Iterable[str], schema: pa.Schema, opens: Opens, hasher: MultisetHasher) -> Multiset:
    total = Multiset()
    for path in paths:
        with opens(path) as source:
            for piece in tables(open_parquet(source, int96_unit=INT96_UNIT), source=source):
                total += hasher.of(conform_table(piece, schema))
    return total


def line_of(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__

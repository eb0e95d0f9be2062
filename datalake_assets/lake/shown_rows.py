"""Datasets as DuckDB is shown them: in the types that it takes, and with a column that is in no file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from datalake_assets.lake.nested_scans import scanner_of

__all__ = ["in_columns"]


def in_columns(dataset: ds.FileSystemDataset, schema: pa.Schema) -> ds.FileSystemDataset:
    """The rows of a dataset in other types, behind a column of nulls.

    Args:
        dataset: The rows. Which they are is for its scanner to say, of whatever class it is.
        schema: The column of nulls, then columns of the dataset, in types that they can be cast to.
    """
    types = {each.name: each.type for each in dataset.schema}
    odd = frozenset(each.name for each in list(schema)[1:] if types[each.name] != each.type)
    if type(dataset) is ds.FileSystemDataset:
        if not odd:
            return dataset.replace_schema(schema)
        return ds.FileSystemDataset(list(dataset.get_fragments()), schema, dataset.format, dataset.filesystem)
    shown = _Shown([], schema, dataset.format, dataset.filesystem)
    shown.rows, shown.odd = dataset, odd
    return shown


class _Shown(ds.FileSystemDataset):  # type: ignore[misc]  # Arrow has no types
    """A dataset with a scanner of its own, in other columns: DuckDB asks for the scanner, and for no file.

    Attributes:
        rows: The dataset.
        odd: Columns that it has in another type.
    """

    rows: ds.FileSystemDataset
    odd: frozenset[str]

    def scanner(
        self,
        columns: Sequence[str] | None = None,
        filter: ds.Expression | None = None,  # noqa: A002  Arrow's name
        **_: Any,
    ) -> ds.Scanner:
        """A scanner of the dataset's own, and the columns made of what it gives."""
        names = self.schema.names if columns is None else list(columns)
        wanted = pa.schema([self.schema.field(name) for name in names])
        if filter is None or not any(_uses(filter, name, self.schema) for name in self.odd):
            batches = _conformed(self.rows.scanner(columns=self._given(names), filter=filter), wanted)
            return scanner_of(batches, wanted)
        read = pa.schema([each for each in self.schema if each.name in names or _uses(filter, each.name, self.schema)])
        batches = _conformed(self.rows.scanner(columns=self._given(read.names)), read)
        return scanner_of(batches, read, columns=names, where=filter)

    def _given(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name != self.schema.names[0]]


def _conformed(scanner: ds.Scanner, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for batch in scanner.to_batches():
        columns = [
            batch.column(each.name).cast(each.type) if each.name in batch.schema.names else pa.nulls(batch.num_rows)
            for each in schema
        ]
        yield pa.record_batch(columns, schema=schema)


def _uses(condition: ds.Expression, name: str, schema: pa.Schema) -> bool:
    """Whether a condition is about a column: without it, Arrow cannot bind it."""
    try:
        pa.schema([each for each in schema if each.name != name]).empty_table().filter(condition)
    except pa.ArrowInvalid:
        return True
    return False

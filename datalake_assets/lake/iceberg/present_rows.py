"""Rows of data files as the table has them now: columns of the present schema, by field id, without what is deleted.

Columns are brought into shape as in pyiceberg's own scans: renamed, added, widened and dropped ones, and those that the
partition alone states. Positions count from the file's first row, so that all of it is decoded, in pieces of bounded
size. Equality deletes, which pyiceberg does not know, are applied here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt
from pyiceberg.exceptions import ResolveError
from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import (
    ArrowAccessor,
    ArrowProjectionVisitor,
    _get_column_projection_values,
    pyarrow_to_schema,
    schema_to_pyarrow,
)
from pyiceberg.schema import Schema, visit_with_partner
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.types import ListType, MapType, NestedField

from datalake_assets.errors import UnreadableFile
from datalake_assets.lake.iceberg.object_reads import Fetching, open_native
from datalake_assets.lake.iceberg.snapshot_files import DeleteFile, LiveFile
from datalake_assets.parquet.decoding import open_parquet, tables
from datalake_assets.parquet.failed_requests import failed_request
from datalake_assets.parquet.keys import ARROW_SCHEMA, FIELD_ID
from datalake_assets.parquet.native import Part, load_kernel

__all__ = ["PresentRows", "SameShape", "same_fields"]

#: Rows that equality deletes may name of one rewrite: they are held at once.
MAX_EQUALITY_DELETES = 5_000_000


class _Projection(ArrowProjectionVisitor):
    """pyiceberg's, which makes an empty list of a list of structs that is null, and an empty map of such a map."""

    def list(self, list_type: ListType, list_array: pa.Array | None, value_array: pa.Array | None) -> pa.Array | None:
        return _as_null_as(list_array, super().list(list_type, list_array, value_array))

    def map(
        self, map_type: MapType, map_array: pa.Array | None, key_result: pa.Array | None, value_result: pa.Array | None
    ) -> pa.Array | None:
        return _as_null_as(map_array, super().map(map_type, map_array, key_result, value_result))


def _as_null_as(given: pa.Array | None, made: pa.Array | None) -> pa.Array | None:
    if given is None or made is None or given.null_count == made.null_count:
        return made
    return pc.if_else(given.is_valid(), made, pa.scalar(None, made.type))


def projected(
    wanted: Schema, has: Schema, batch: pa.RecordBatch, *, stated: Mapping[int, Any] = MappingProxyType({})
) -> pa.RecordBatch:
    """Rows of a file in other columns, found by field id.

    Args:
        wanted: The columns.
        has: Those of the file.
        batch: The rows.
        stated: Values of columns that the file has not, by field id.
    """
    visitor = _Projection(
        has,
        downcast_ns_timestamp_to_us=True,
        projected_missing_fields=dict(stated),
        allow_timestamp_tz_mismatch=True,
    )
    return pa.RecordBatch.from_struct_array(visit_with_partner(wanted, batch, visitor, ArrowAccessor(has)))


class PresentRows:
    """The rows of some data files.

    Args:
        metadata: Of the table.
        io: The table's.
        fetching: Opens the files.
        files: Which, with their deletes.

    Attributes:
        arrow: The schema that rows have, with field ids.
        rejected: Paths of the files that cannot be read, with the reason.
        deleted_of: How many rows of a file were left out, by path; known once it was read.
    """

    def __init__(self, metadata: TableMetadata, io: FileIO, fetching: Fetching, files: Sequence[LiveFile]) -> None:
        self._metadata, self._io, self._fetching = metadata, io, fetching
        self._schema = metadata.schema()
        self.arrow = schema_to_pyarrow(self._schema, include_field_ids=True)
        self.rejected: dict[str, str] = {}
        self.deleted_of: dict[str, int] = {}
        self._shapes: dict[str, tuple[bool, Mapping[bytes, bytes]]] = {}
        for file in files:
            self._look(file)
        self._deletes = _Deletes(self._io, [file for file in files if file.path not in self.rejected], self._metadata)

    @property
    def rows_deleted(self) -> int:
        """Rows that were left out."""
        return sum(self.deleted_of.values())

    def _look(self, file: LiveFile) -> None:
        try:
            with closing(self._fetching.open(file.path)) as source:
                parquet = open_parquet(source)
                said = _said(parquet.metadata)
                fits = not file.deletes and same_fields(parquet.schema_arrow, self.arrow)
                if parquet.metadata.num_rows != file.file.record_count:
                    self.rejected[file.path] = (
                        f"has {parquet.metadata.num_rows} rows, its manifest says {file.file.record_count}"
                    )
                self._shapes[file.path] = (fits, said)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            if (failure := failed_request(error, file.path)) is not None:
                raise failure from error
            self.rejected[file.path] = f"cannot be read: {str(error).splitlines()[0]}"

    def common_key_values(self) -> Mapping[bytes, bytes]:
        """What the footers of the files that are taken as they are say besides; those of one writer say the same."""
        return next((said for fits, said in self._shapes.values() if fits), {})

    def is_as_it_should_be(self, file: LiveFile) -> bool:
        """Whether the rewriter can take it as it is."""
        if file.path in self.rejected:
            return False
        fits, said = self._shapes[file.path]
        return fits and said == self.common_key_values()

    def rows(self, file: LiveFile) -> Iterator[pa.Table]:
        """Its rows that are there, in pieces.

        Raises:
            UnreadableFile: They cannot be read, or are not as many as the manifest says.
        """
        position = kept = 0
        with _naming(file.path):
            deletes = self._deletes.of(file)
        with closing(self._fetching.open(file.path)) as source:
            parquet = open_parquet(source, int96_unit="us")
            with _naming(file.path):
                bring = self._bringing(file, parquet, deletes.fields)
                pieces = iter(tables(parquet))
            while True:
                with _naming(file.path):
                    table = next(pieces, None)
                    if table is None:
                        break
                    mask = deletes.kept_by_position(position, table.num_rows)
                    position += table.num_rows
                    rows = self._brought(table if mask is None else table.filter(mask), bring, deletes)
                kept += rows.num_rows
                yield rows
        if position != file.file.record_count:
            raise UnreadableFile(file.path, f"{position} rows, its manifest says {file.file.record_count}")
        self.deleted_of[file.path] = position - kept

    def _brought(
        self, table: pa.Table, bring: Callable[[pa.RecordBatch], pa.RecordBatch], deletes: _FileDeletes
    ) -> pa.Table:
        batches = [bring(batch) for batch in table.combine_chunks().to_batches()]
        if not batches:
            return self.arrow.empty_table()
        rows = deletes.without_equal(pa.Table.from_batches(batches))
        return pa.Table.from_arrays([rows[each.name].cast(each.type) for each in self.arrow], schema=self.arrow)

    def _bringing(
        self, file: LiveFile, parquet: pq.ParquetFile, fields: Collection[NestedField]
    ) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
        """What makes a file's columns the table's, and those that deletes name besides."""
        wanted = Schema(*self._schema.fields, *fields) if fields else self._schema
        names = self._metadata.name_mapping()
        has = pyarrow_to_schema(parquet.schema_arrow, names, downcast_ns_timestamp_to_us=True)
        spec = self._metadata.specs()[file.file.spec_id]
        stated = _get_column_projection_values(file.file, wanted, self._schema, spec, has.field_ids)
        return partial(projected, wanted, has, stated=stated)


class SameShape:
    """Whether files can be rewritten as they are, one after another as they are read, and by the first alike.

    What makes two files alike, their schema and key-values, stands in their footers byte for byte. Where the native
    kernel finds it, only those are parsed that differ from all before.

    Args:
        schema: The table's columns, with field ids.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._schema, self._kernel = schema, load_kernel()
        self._known: set[bytes] = set()
        self._said: Mapping[bytes, bytes] | None = None

    def has(self, source: pa.NativeFile) -> bool:
        """Whether a file has it; where it is read from does not matter afterwards."""
        stated = self._stated(source)
        if stated is not None and stated in self._known:
            return True
        source.seek(0)
        try:
            parquet = open_parquet(source)
            fits, said = same_fields(parquet.schema_arrow, self._schema), _said(parquet.metadata)
        except (pa.ArrowException, OSError, ValueError):
            return False
        self._said = said if self._said is None else self._said
        if not fits or said != self._said:
            return False
        if stated is not None:
            self._known.add(stated)
        return True

    def _stated(self, source: pa.NativeFile) -> bytes | None:
        """Schema and key-values of a file that is at hand."""
        if self._kernel is None or not isinstance(source, pa.BufferReader):
            return None
        data = source.read_buffer()
        (found,) = self._kernel.check([Part(data)])
        if found.refused:
            return None
        view = memoryview(data)
        return b"".join(bytes(view[at : at + size]) for at, size in (found.schema, found.key_values))


def _said(metadata: pq.FileMetaData) -> dict[bytes, bytes]:
    """What a footer says besides its schema."""
    return {key: value for key, value in (metadata.metadata or {}).items() if key != ARROW_SCHEMA}


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """What Arrow and pyiceberg raise over a file becomes an error that names it."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, ResolveError, NotImplementedError) as error:
        if (failure := failed_request(error, path)) is not None:
            raise failure from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableFile(path, f"cannot be read: {reason}") from error


def same_fields(found: Sequence[pa.Field] | pa.Schema, wanted: Sequence[pa.Field] | pa.Schema) -> bool:
    """Whether columns have the names, field ids and types that are wanted, in that order; text may be long or short."""
    found, wanted = list(found), list(wanted)
    return len(found) == len(wanted) and all(
        one.name == other.name and _field_id(one) == _field_id(other) is not None and _same_type(one.type, other.type)
        for one, other in zip(found, wanted, strict=True)
    )


def _field_id(field: pa.Field) -> bytes | None:
    return (field.metadata or {}).get(FIELD_ID)


def _same_type(found: pa.DataType, wanted: pa.DataType) -> bool:
    if pt.is_dictionary(found):
        found = found.value_type
    if isinstance(found, pa.BaseExtensionType):
        found = found.storage_type
    if isinstance(wanted, pa.BaseExtensionType):
        wanted = wanted.storage_type
    if pt.is_struct(wanted):
        return pt.is_struct(found) and same_fields(list(found), list(wanted))
    if pt.is_map(wanted):
        return pt.is_map(found) and _same_parts(
            (found.key_field, found.item_field), (wanted.key_field, wanted.item_field)
        )
    if _is_list(wanted):
        return _is_list(found) and _same_parts((found.value_field,), (wanted.value_field,))
    for texts in ((pt.is_string, pt.is_large_string), (pt.is_binary, pt.is_large_binary)):
        if any(is_text(wanted) for is_text in texts):
            return any(is_text(found) for is_text in texts)
    if pt.is_timestamp(wanted):
        return pt.is_timestamp(found) and found.unit == wanted.unit and (found.tz is None) == (wanted.tz is None)
    return bool(found == wanted)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pt.is_list(kind) or pt.is_large_list(kind))


def _same_parts(found: Sequence[pa.Field], wanted: Sequence[pa.Field]) -> bool:
    return all(
        _field_id(one) == _field_id(other) is not None and _same_type(one.type, other.type)
        for one, other in zip(found, wanted, strict=True)
    )


@dataclass(frozen=True, slots=True)
class _Equal:
    """Rows named by the values of some columns."""

    names: tuple[str, ...]
    keys: pa.Table


@dataclass(frozen=True, slots=True)
class _FileDeletes:
    """What is deleted of one data file."""

    positions: np.ndarray[Any, np.dtype[np.int64]] | None
    equal: tuple[_Equal, ...]
    fields: tuple[NestedField, ...]

    def kept_by_position(self, start: int, rows: int) -> pa.Array | None:
        """Which of the rows from there on are there; None if all."""
        if self.positions is None:
            return None
        begin, end = np.searchsorted(self.positions, [start, start + rows])
        if begin == end:
            return None
        mask = np.ones(rows, dtype=np.bool_)
        mask[self.positions[begin:end] - start] = False
        return pa.array(mask)

    def without_equal(self, rows: pa.Table) -> pa.Table:
        """The rows that no equality delete names; null equals null."""
        for each in self.equal:
            keys = _comparable_keys(rows, each.names).append_column("#", pa.array(np.arange(rows.num_rows)))
            left = keys.join(each.keys, list(each.keys.column_names), join_type="left anti")
            if left.num_rows < rows.num_rows:
                rows = rows.take(pa.array(np.sort(left["#"].to_numpy())))
        return rows


def _comparable_keys(rows: pa.Table, names: Sequence[str]) -> pa.Table:
    """Columns that Arrow joins by, so that a null equals a null: whether there is a value, and the value or a zero."""
    columns: dict[str, pa.ChunkedArray] = {}
    for number, name in enumerate(names):
        column = rows[name]
        if isinstance(column.type, pa.BaseExtensionType):
            column = column.cast(column.type.storage_type)
        if pt.is_string(column.type):
            column = column.cast(pa.large_string())
        elif pt.is_binary(column.type):
            column = column.cast(pa.large_binary())
        columns[f"{number} is null"] = column.is_null()
        columns[f"{number}"] = column.fill_null(_zero(column.type))
    return pa.table(columns)


def _zero(kind: pa.DataType) -> pa.Scalar:
    if pt.is_large_string(kind) or pt.is_large_binary(kind):
        return pa.scalar(b"", pa.binary()).cast(kind)
    # of all types of a fixed width, which Arrow casts from a number by rules of each: bits without a one
    return pa.Array.from_buffers(kind, 1, [None, pa.py_buffer(bytes(-(-kind.bit_width // 8)))])[0]


class _Deletes:
    """The rows that the delete files of a group name, read once."""

    def __init__(self, io: FileIO, files: Sequence[LiveFile], metadata: TableMetadata) -> None:
        self._io, self._metadata = io, metadata
        self._all_fields = {field.field_id: field for schema in metadata.schemas for field in schema.fields}
        self._positions: dict[str, list[Any]] = defaultdict(list)
        wanted: dict[str, tuple[DeleteFile, list[str]]] = {}
        for file in files:
            for each in file.deletes:
                if not each.is_equality:
                    wanted.setdefault(each.path, (each, []))[1].append(file.path)
        for each, targets in wanted.values():
            self._read_positions(each, targets)
        self._equal: dict[str, tuple[tuple[NestedField, ...], pa.Table]] = {}
        self._equal_rows = 0

    def of(self, file: LiveFile) -> _FileDeletes:
        """What is deleted of a file."""
        found = self._positions.get(file.path)
        positions = np.unique(np.concatenate(found)) if found else None
        equal: list[_Equal] = []
        fields: dict[int, NestedField] = {}
        by_fields: dict[tuple[int, ...], list[pa.Table]] = defaultdict(list)
        for each in file.deletes:
            if each.is_equality:
                named, keys = self._equality(each)
                by_fields[tuple(field.field_id for field in named)].append(keys)
                fields |= {field.field_id: field for field in named}
        for numbers, keys_of in by_fields.items():
            names = tuple(self._name(fields[number]) for number in numbers)
            equal.append(_Equal(names, pa.concat_tables(keys_of)))
        present = {field.field_id for field in self._metadata.schema().fields}
        extra = tuple(_renamed(field) for number, field in fields.items() if number not in present)
        return _FileDeletes(positions, tuple(equal), extra)

    def _name(self, field: NestedField) -> str:
        """Its name in the projected schema: the present one's, or one that no column has."""
        for each in self._metadata.schema().fields:
            if each.field_id == field.field_id:
                return str(each.name)
        return str(_renamed(field).name)

    def _read_positions(self, delete: DeleteFile, targets: Collection[str]) -> None:
        with _naming(delete.path), closing(self._opened(delete)) as source:
            parquet = pq.ParquetFile(source)
            for batch in parquet.iter_batches(columns=["file_path", "pos"]):
                chosen = batch.filter(pc.is_in(batch["file_path"].cast(pa.string()), pa.array(sorted(targets))))
                for path in pc.unique(chosen["file_path"].cast(pa.string())).to_pylist():
                    of_file = chosen.filter(pc.equal(chosen["file_path"].cast(pa.string()), path))
                    self._positions[path].append(of_file["pos"].to_numpy(zero_copy_only=False))

    def _equality(self, delete: DeleteFile) -> tuple[tuple[NestedField, ...], pa.Table]:
        if delete.path in self._equal:
            return self._equal[delete.path]
        missing = [number for number in delete.file.equality_ids or [] if number not in self._all_fields]
        if missing or not delete.file.equality_ids:
            raise UnreadableFile(delete.path, f"it deletes by columns that the table has not: {missing}")
        fields = tuple(self._present(self._all_fields[number]) for number in sorted(delete.file.equality_ids))
        self._equal_rows += delete.file.record_count
        if self._equal_rows > MAX_EQUALITY_DELETES:
            reason = f"more than {MAX_EQUALITY_DELETES:,} equality deletes apply at once"
            raise UnreadableFile(delete.path, reason)
        with closing(self._opened(delete)) as source:
            parquet = pq.ParquetFile(source)
            rows = parquet.read()
            file_schema = pyarrow_to_schema(
                parquet.schema_arrow, self._metadata.name_mapping(), downcast_ns_timestamp_to_us=True
            )
        wanted = Schema(*(_optional(field) for field in fields))
        brought = [projected(wanted, file_schema, batch) for batch in rows.combine_chunks().to_batches()]
        empty = schema_to_pyarrow(wanted, include_field_ids=False)
        table = pa.Table.from_batches(brought) if brought else empty.empty_table()
        keys = _comparable_keys(table, [field.name for field in fields])
        self._equal[delete.path] = (fields, keys)
        return self._equal[delete.path]

    def _opened(self, delete: DeleteFile) -> pa.NativeFile:
        return open_native(self._io, delete.path, delete.file.file_size_in_bytes)

    def _present(self, field: NestedField) -> NestedField:
        """The field as the table has it now, if it still has it: its type may be wider."""
        for each in self._metadata.schema().fields:
            if each.field_id == field.field_id:
                return each
        return field


def _optional(field: NestedField) -> NestedField:
    return NestedField(field.field_id, field.name, field.field_type, required=False)


def _renamed(field: NestedField) -> NestedField:
    return NestedField(field.field_id, f"{field.name} (dropped {field.field_id})", field.field_type, required=False)

"""Whether two sets of rows are the same, without keeping or sorting them; guards against accidents, not adversaries.

The *fingerprint* shows that a window pulled again holds what the lake holds: every row gets a 64-bit hash over all its
columns, and the hashes are added up modulo 2**64, so that the order of rows does not matter. The *checksum* proves a
compaction and is fast enough to be the rule: DuckDB hashes, we add up; where DuckDB cannot take a type, `row_hashes`
does, slower. Rows lost, doubled or changed, or values that moved to another row, change both. Two tables in the same
order are compared to the last bit instead, which is much cheaper.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from datalake_assets.core.values import Value
from datalake_assets.errors import duckdb_interrupted

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["Hashes", "Multiset", "MultisetHasher", "row_hashes", "same_rows", "same_values"]

Hashes: TypeAlias = "npt.NDArray[np.uint64]"

# Constants of splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_NULL = np.uint64(0x6E756C6C6E756C6C)
#: An odd base has an inverse modulo 2**64, which turns prefix sums into the hash of any slice.
_BASE = 0x5851F42D4C957F2D
_INVERSE = pow(_BASE, -1, 1 << 64)


def row_hashes(batch: pa.RecordBatch) -> Hashes:
    """One hash per row over all columns; a column's name goes into it, so that the order of columns does not matter."""
    total = np.zeros(batch.num_rows, dtype=np.uint64)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        total += _mix(_hashes(column) ^ _salt(name))
    return _mix(total)


def _salt(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()))


def _mix(values: Hashes) -> Hashes:
    values = values + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return values ^ (values >> np.uint64(31))


def _hashes(array: pa.Array) -> Hashes:
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _hashes(array.storage)
    if pa.types.is_dictionary(kind):
        return _hashes(array.dictionary_decode())
    if pa.types.is_struct(kind):
        hashes = _struct(array)
    elif pa.types.is_map(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        hashes = _list(array)
    elif pa.types.is_fixed_size_list(kind):
        hashes = _fixed_list(array)
    elif (
        pa.types.is_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_large_binary(kind)
    ):
        hashes = _text(array.cast(pa.large_binary()))
    else:
        hashes = _fixed(array)
    if array.null_count:
        hashes = np.where(np.asarray(array.is_null()), _NULL, hashes)
    return hashes


def _fixed(array: pa.Array) -> Hashes:
    """Values of fixed width: hashed word by word."""
    if pa.types.is_null(array.type):
        return np.full(len(array), _NULL)
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    width = array.type.byte_width
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(len(array), dtype=np.uint64)
    raw = np.frombuffer(buffer, dtype=np.uint8)[array.offset * width : (array.offset + len(array)) * width]
    words = -(-width // 8)
    padded = np.zeros((len(array), words * 8), dtype=np.uint8)
    padded[:, :width] = raw.reshape(len(array), width)
    hashes = np.zeros(len(array), dtype=np.uint64)
    for word in padded.view(np.uint64).T:
        hashes = _mix(hashes ^ word)
    return hashes


def _text(array: pa.Array) -> Hashes:
    """Values of variable width: a polynomial over their bytes, all at once by prefix sums."""
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    data = array.buffers()[2]
    first = int(offsets[0]) if len(offsets) else 0
    raw = np.frombuffer(data, dtype=np.uint8)[first : int(offsets[-1])] if data is not None else np.zeros(0, np.uint8)
    return _mix(_polynomial(raw.astype(np.uint64) + np.uint64(1), offsets - first))


def _polynomial(values: Hashes, offsets: npt.NDArray[np.int64]) -> Hashes:
    """Hash of each slice ``values[offsets[i]:offsets[i + 1]]``."""
    powers = _powers(_BASE, len(values) + 1)
    prefix = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(values * powers[:-1], out=prefix[1:])
    starts, ends = offsets[:-1], offsets[1:]
    back = _powers(_INVERSE, len(values) + 1)[starts]
    return (prefix[ends] - prefix[starts]) * back + (ends - starts).astype(np.uint64) * _GOLDEN


def _powers(base: int, count: int) -> Hashes:
    powers = np.full(count, np.uint64(base))
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def _list(array: pa.Array) -> Hashes:
    width = np.int64 if pa.types.is_large_list(array.type) else np.int32
    buffer = array.buffers()[1]
    if buffer is None:
        return np.zeros(len(array), dtype=np.uint64)
    offsets = np.frombuffer(buffer, dtype=width)[array.offset : array.offset + len(array) + 1].astype(np.int64)
    if pa.types.is_map(array.type):
        values = _mix(_hashes(array.keys)) * _MIX_1 + _hashes(array.items)
    else:
        values = _hashes(array.values)
    return _mix(_polynomial(_mix(values), offsets))


def _fixed_list(array: pa.Array) -> Hashes:
    size = array.type.list_size
    values = array.values.slice(array.offset * size, len(array) * size)
    return _mix(_polynomial(_mix(_hashes(values)), np.arange(len(array) + 1, dtype=np.int64) * size))


def _struct(array: pa.Array) -> Hashes:
    import pyarrow.compute as pc  # noqa: PLC0415  the kernel merges without

    total = np.zeros(len(array), dtype=np.uint64)
    for field in array.type:
        total += _mix(_hashes(pc.struct_field(array, field.name)) ^ _salt(field.name))
    return total


_MODULUS = 1 << 64


class Multiset(Value, frozen=True):
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
        self._session = duckdb.connect(config={"threads": 1, "async_threads": 0})  # which starts none
        self._is_simple = bool(len(schema)) and self._duckdb_takes_it()

    def of(self, table: pa.Table) -> Multiset:
        """The multiset of a table's rows."""
        if not table.num_rows:
            return Multiset()
        if self._is_simple:
            return Multiset(table.num_rows, self._sum_of_any(table))
        total = sum(int(row_hashes(batch).sum()) for batch in table.to_batches())
        return Multiset(table.num_rows, total % _MODULUS)

    def close(self) -> None:
        """Ends the session."""
        self._session.close()

    def _sum_of_any(self, table: pa.Table) -> int:
        """DuckDB refuses some structs within lists that are part of longer arrays; copies of them stand alone."""
        try:
            return self._sum(table)
        except self._refusals:
            return self._sum(table.take(pa.array(np.arange(table.num_rows))))

    @duckdb_interrupted()
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
    """Times and floating-point numbers as integers: DuckDB would round some, refuse others, and hash zeros alike."""
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(_storage(column))
    if pt.is_floating(kind):
        return _as_bits(column)
    if pt.is_time32(kind) or pt.is_date32(kind):
        return _viewed(column, pa.int32())
    if any(is_wide(kind) for is_wide in (pt.is_timestamp, pt.is_time64, pt.is_date64, pt.is_duration)):
        return _viewed(column, pa.int64())
    return column


def _viewed(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    return pa.chunked_array([chunk.view(kind) for chunk in column.chunks], kind)


_BITS = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}


def same_rows(left: pa.Table, right: pa.Table) -> bool:
    """Whether all values are equal, row by row; NaNs are if their bits are, and zero is not minus zero.

    False may also mean that this way cannot decide: dictionaries in another order. Then the rows have to be compared by
    their hashes (`MultisetHasher`).
    """
    return left.schema.equals(right.schema) and all(map(_equal, left.columns, right.columns))


def same_values(expected: Iterable[pa.Table], found: Iterable[pa.Table]) -> bool:
    """Whether two streams hold the same rows in the same order, however they are cut; holds about a piece of each.

    Both have one schema. Where `same_rows` cannot decide, the rows' hashes are compared one by one.
    """
    wanted = iter(expected)
    rest: pa.Table | None = None
    for piece in found:
        held: list[pa.Table] = []
        missing = piece.num_rows
        while missing:
            rest = rest if rest is not None else next(wanted, None)
            if rest is None:
                return False
            held.append(rest.slice(0, missing))
            missing -= held[-1].num_rows
            rest = rest.slice(held[-1].num_rows) if rest.num_rows > held[-1].num_rows else None
        if held and not _same_in_order(pa.concat_tables(held), piece):
            return False
    return (rest is None or not rest.num_rows) and not any(each.num_rows for each in wanted)


def _same_in_order(one: pa.Table, other: pa.Table) -> bool:
    if same_rows(one, other):
        return True
    if not one.schema.equals(other.schema):
        return False
    batches = (pa.Table.combine_chunks(each).to_batches() for each in (one, other))
    first, second = (np.concatenate([row_hashes(batch) for batch in of_one]) for of_one in batches)
    return np.array_equal(first, second)


def _equal(one: pa.ChunkedArray, other: pa.ChunkedArray) -> bool:
    """Whether two columns of one type have the same values; to Arrow no NaN equals itself, and both zeros are equal."""
    kind = one.type
    if not _has_floats(kind):
        return bool(one.equals(other))
    if pt.is_floating(kind):
        return bool(_as_bits(one).equals(_as_bits(other)))
    parts = _parts(one)
    return bool(parts) and all(map(_equal, parts, _parts(other)))


def _parts(column: pa.ChunkedArray) -> list[pa.ChunkedArray]:
    """Columns that are the same exactly where it is the same, a level less deep; empty if nobody knows them."""
    import pyarrow.compute as pc  # noqa: PLC0415  the kernel merges without

    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return [_storage(column)]
    if pt.is_dictionary(kind):
        return [column.cast(kind.value_type)]
    if pt.is_map(kind):
        return [column.cast(pa.list_(pa.struct([kind.key_field, kind.item_field])))]
    if pt.is_struct(kind):
        return [column.is_null(), *column.flatten()]
    if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind):
        return [pc.list_value_length(column), pc.list_flatten(column)]
    return []


def _has_floats(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return _has_floats(kind.storage_type)
    if pt.is_dictionary(kind):
        return _has_floats(kind.value_type)
    inner = (kind.field(place).type for place in range(kind.num_fields)) if pt.is_nested(kind) else ()
    return pt.is_floating(kind) or any(map(_has_floats, inner))


def _as_bits(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Floating-point numbers as the bits that they are."""
    return _viewed(column, _BITS[column.type.bit_width])


def _storage(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return pa.chunked_array([chunk.storage for chunk in column.chunks], column.type.storage_type)

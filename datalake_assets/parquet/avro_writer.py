"""Avro object container files, written from Arrow without a Python object per row.

Each column becomes an Arrow binary array of its values' Avro bytes; Arrow joins the columns row by row, and the joined
bytes are a block. The format: Apache Avro 1.12, "Object Container Files" and "Binary Encoding".
"""

from __future__ import annotations

import json
import re
import secrets
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from datalake_assets.core.arrow_arrays import constant, numbers_in

__all__ = ["AvroCodec", "AvroFileWriter", "avro_schema"]

AvroCodec = Literal["null", "snappy", "zstandard", "deflate"]
#: Rows of a block.
BLOCK_ROWS = 8192
SYNC_BYTES = 16
#: Bits of a byte of a variable-length integer that carry the value.
_BITS, _MORE = 7, 128
_DECIMAL_BYTES = 16
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_]")

Numbers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


class _Sink(Protocol):
    def write(self, data: bytes | memoryview, /) -> int:
        """Appends."""


def avro_schema(schema: pa.Schema, *, name: str = "row") -> dict[str, Any]:
    """The Avro schema of rows.

    Avro's names are letters, digits and underscores: other characters become underscores, and the field keeps the
    column's name as ``source_name``.

    Raises:
        ValueError: A column has a type that is not written.
    """
    fields: list[dict[str, Any]] = []
    taken: set[str] = set()
    for field in schema:
        base = _NOT_IN_NAMES.sub("_", field.name) or "_"
        plain = base = f"_{base}" if base[0].isdigit() else base
        more = 2
        while plain in taken:
            plain, more = f"{base}_{more}", more + 1
        taken.add(plain)
        kind = _avro_type(field, plain)
        said = {"name": plain, "type": ["null", kind] if field.nullable else kind}
        if field.nullable:
            said["default"] = None
        fields.append(said if plain == field.name else {**said, "source_name": field.name})
    return {"type": "record", "name": name, "fields": fields}


def _avro_type(field: pa.Field, name: str) -> Any:
    kind = field.type
    for is_kind, said in _TYPES:
        if is_kind(kind):
            return said
    if pt.is_decimal128(kind):
        numbers = {"precision": kind.precision, "scale": kind.scale}
        fixed = {"type": "fixed", "name": f"{name}_decimal", "size": _DECIMAL_BYTES}
        return {**fixed, "logicalType": "decimal", **numbers}
    if pt.is_timestamp(kind) and kind.unit in _UNITS:
        local = "" if kind.tz else "local-"
        return {"type": "long", "logicalType": f"{local}timestamp-{_UNITS[kind.unit]}"}
    raise ValueError(f"column {field.name!r} is {kind}, which is not written as Avro")


_UNITS: Mapping[str, str] = {"ms": "millis", "us": "micros", "ns": "nanos"}
_TYPES: Sequence[tuple[Callable[[pa.DataType], bool], Any]] = (
    (pt.is_boolean, "boolean"),
    (pt.is_int8, "int"),
    (pt.is_int16, "int"),
    (pt.is_int32, "int"),
    (pt.is_int64, "long"),
    (pt.is_uint8, "int"),
    (pt.is_uint16, "int"),
    (pt.is_uint32, "long"),
    (pt.is_float32, "float"),
    (pt.is_float64, "double"),
    (pt.is_string, "string"),
    (pt.is_binary, "bytes"),
    (pt.is_date32, {"type": "int", "logicalType": "date"}),
)


class AvroFileWriter:
    """One file being written; not safe to use from two threads at once.

    Args:
        sink: Takes the bytes; finishing it is the caller's.
        schema: Of all rows.
        codec: Of the blocks.
        level: Of zstandard and deflate; None: 1.
    """

    def __init__(
        self, sink: _Sink, schema: pa.Schema, *, codec: AvroCodec = "snappy", level: int | None = None
    ) -> None:
        self._sink, self._schema, self._codec, self._level = sink, schema, codec, level or 1
        self._sync = secrets.token_bytes(SYNC_BYTES)
        self.rows = self.size_bytes = 0
        text = json.dumps(avro_schema(schema)).encode()
        meta = b"".join((_length(2), *map(_with_length, (b"avro.schema", text, b"avro.codec", codec.encode())), b"\0"))
        self._write(b"Obj\1" + meta + self._sync)

    def write(self, rows: pa.RecordBatch) -> None:
        """Appends rows, in blocks."""
        for begin in range(0, rows.num_rows, BLOCK_ROWS):
            self._block(rows.slice(begin, BLOCK_ROWS))

    def _block(self, rows: pa.RecordBatch) -> None:
        parts = [
            part
            for column, field in zip(rows.columns, self._schema, strict=True)
            for part in _encoded(column, is_nullable=field.nullable)
        ]
        joined = pc.binary_join_element_wise(*parts, constant(b"")) if parts else pa.array([b""])
        offsets = np.frombuffer(joined.buffers()[1], np.int32)
        begin, end = int(offsets[joined.offset]), int(offsets[joined.offset + len(joined)])
        data = self._packed(joined.buffers()[2].slice(begin, end - begin))
        self._write(_length(rows.num_rows) + _length(len(data)))
        self._write(data)
        self._write(self._sync)
        self.rows += rows.num_rows

    def _packed(self, data: pa.Buffer) -> bytes | memoryview:
        if self._codec == "snappy":
            packed: bytes = pa.compress(data, "snappy", asbytes=True)
            return packed + struct.pack(">I", zlib.crc32(data))
        if self._codec == "zstandard":
            return bytes(pa.Codec("zstd", compression_level=self._level).compress(data, asbytes=True))
        if self._codec == "deflate":
            packer = zlib.compressobj(self._level, zlib.DEFLATED, -15)
            return packer.compress(data) + packer.flush()
        return memoryview(data)

    def _write(self, data: bytes | memoryview) -> None:
        self._sink.write(data)
        self.size_bytes += len(data)


def _length(number: int) -> bytes:
    """A number as Avro writes it: zigzag, seven bits a byte."""
    left, out = (number << 1) ^ (number >> 63), bytearray()
    while left >= _MORE:
        out.append(left & (_MORE - 1) | _MORE)
        left >>= _BITS
    out.append(left)
    return bytes(out)


def _with_length(data: bytes) -> bytes:
    return _length(len(data)) + data


def _encoded(column: pa.Array, *, is_nullable: bool) -> list[pa.Array]:
    """A column's values in Avro's bytes, as one binary array or two that stand side by side."""
    # the index of the union's second branch
    prefix = 2 if is_nullable else None
    kind = column.type
    if pt.is_string(kind) or pt.is_binary(kind):
        lengths = numbers_in(pc.fill_null(pc.binary_length(column).cast(pa.int64()), constant(0)))
        plain = column.cast(pa.binary())
        parts = [_variable(lengths, prefix), plain.fill_null(constant(b"")) if plain.null_count else plain]
    elif (fixed := _fixed_bytes(column)) is not None:
        if prefix is not None:
            fixed = np.concatenate([np.full((len(fixed), 1), prefix, np.uint8), fixed], axis=1)
        parts = [_binary(np.ascontiguousarray(fixed).reshape(-1), np.full(len(fixed), fixed.shape[1]))]
    else:
        parts = [_variable(_integers(column), prefix)]
    if not is_nullable or not column.null_count:
        return parts
    is_there, absent = column.is_valid(), (b"\0", b"")
    return [pc.if_else(is_there, part, constant(none)) for part, none in zip(parts, absent, strict=False)]


def _fixed_bytes(column: pa.Array) -> Bytes | None:
    """A row of bytes a value, of types whose values are all of one size."""
    kind = column.type
    if pt.is_boolean(kind):
        truths: Bytes = numbers_in(pc.fill_null(column, constant(False)).cast(pa.uint8()))[:, None]
        return truths
    if pt.is_floating(kind):
        numbers: Bytes = _values(column, f"<f{kind.bit_width // 8}").view(np.uint8).reshape(len(column), -1)
        return numbers
    if pt.is_decimal128(kind):
        data = np.frombuffer(column.buffers()[1], np.uint8)
        mine = data[column.offset * _DECIMAL_BYTES : (column.offset + len(column)) * _DECIMAL_BYTES]
        reversed_: Bytes = mine.reshape(-1, _DECIMAL_BYTES)[:, ::-1]
        return reversed_
    return None


def _integers(column: pa.Array) -> Numbers:
    plain = column
    if pt.is_timestamp(column.type):
        plain = column.view(pa.int64())
    elif pt.is_date32(column.type):
        plain = column.view(pa.int32())
    numbers: Numbers = _values(plain.cast(pa.int64()), "<i8")
    return numbers


def _values(column: pa.Array, dtype: str) -> Any:
    """The values where they are; 0 or whatever stands there for nulls."""
    nothing = pa.Array.from_buffers(column.type, 1, [None, pa.py_buffer(bytes(8))])[0]
    filled = column.fill_null(nothing) if column.null_count else column
    values = np.frombuffer(filled.buffers()[1], dtype)[filled.offset : filled.offset + len(filled)]
    return np.ascontiguousarray(values)


def _variable(numbers: Numbers, prefix: int | None) -> pa.Array:
    """Numbers as Avro writes them, behind a constant byte where there is one."""
    zigzag = ((numbers << 1) ^ (numbers >> 63)).view(np.uint64)
    smallest, largest = (int(zigzag.min()), int(zigzag.max())) if len(zigzag) else (0, 0)
    width, least = (max(1, -(-each.bit_length() // _BITS)) for each in (largest, smallest))
    first = 0 if prefix is None else 1
    out = np.empty((len(zigzag), width + first), np.uint8)
    lengths = np.full(len(zigzag), 1 + first, np.int64)
    if prefix is not None:
        out[:, 0] = prefix
    for place in range(width):
        rest = zigzag >> np.uint64(_BITS * place)
        has_more = rest >= _MORE
        out[:, place + first] = (rest & np.uint64(_MORE - 1)).astype(np.uint8) | (has_more.astype(np.uint8) << 7)
        lengths += has_more
    if least == width:  # times are, and lengths of short texts
        return _binary(out.reshape(-1), lengths)
    return _binary(out[np.arange(width + first) < lengths[:, None]], lengths)


def _binary(data: Bytes, lengths: Numbers) -> pa.Array:
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.Array.from_buffers(pa.binary(), len(lengths), [None, pa.py_buffer(offsets), pa.py_buffer(data)])

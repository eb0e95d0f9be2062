"""Parquet files made level by level, as no writer makes them: Arrow's schema, and pages of any levels and values."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.parquet.thrift import CompactReader, CompactWriter, varint, zigzag

__all__ = ["Page", "made", "packed"]

TYPES = {"BOOLEAN": 0, "INT32": 1, "INT64": 2, "DOUBLE": 5, "BYTE_ARRAY": 6}
FALSE, I32, I64, BINARY, LIST, STRUCT = 2, 5, 6, 8, 9, 12


@dataclass(frozen=True)
class Page:
    """A data page, or a dictionary, not compressed.

    Attributes:
        values: Integers, or texts.
        definition: A level for each value, missing ones too; not looked at where the column has none.
        repetition: Likewise.
        indices: What stands in place of the values, which are a dictionary's then: their width, and runs.
        count: Of values, where there are no levels.
        is_dictionary: It is one.
        version: Of a data page.
    """

    values: Sequence[int | str] = ()
    definition: Sequence[int] = ()
    repetition: Sequence[int] = ()
    indices: bytes = b""
    count: int = 0
    is_dictionary: bool = False
    version: int = 1

    def encoded(self, leaf: pq.ColumnSchema) -> tuple[bytes, int, int]:
        """Its bytes, with the head; how many values it has; and how many rows begin in it."""
        count = len(self.definition) or len(self.repetition) or self.count or len(self.values)
        levels = [_levels(self.repetition)] * (leaf.max_repetition_level > 0)
        levels += [_levels(self.definition)] * (leaf.max_definition_level > 0)
        body = self.indices or b"".join(_plain(value, leaf.physical_type) for value in self.values)
        begun = list(self.repetition).count(0) if leaf.max_repetition_level else count
        encoding = 8 if self.indices else 0
        if self.is_dictionary:
            return _page(2, 7, body, count, 0), 0, 0
        if self.version == 1:
            body = b"".join(len(each).to_bytes(4, "little") + each for each in levels) + body
            return _page(0, 5, body, count, encoding, 3, 3), count, begun
        sizes = ([0, 0] + [len(each) for each in levels])[-2:]
        nulls = sum(level < leaf.max_definition_level for level in self.definition)
        body = b"".join(levels) + body
        return _page(3, 8, body, count, nulls, begun, encoding, sizes[1], sizes[0], is_compressed=False), count, begun


def _page(kind: int, field: int, body: bytes, *numbers: int, is_compressed: bool = True) -> bytes:
    """A page with its head, of which numbers follow each other."""
    inner = [(place, I32, zigzag(number)) for place, number in enumerate(numbers, 1)]
    flags = [] if is_compressed else [(len(numbers) + 1, FALSE, b"")]
    told = ((1, I32, zigzag(kind)), (2, I32, zigzag(len(body))), (3, I32, zigzag(len(body))))
    return _struct(*told, (field, STRUCT, _struct(*inner, *flags))) + body


def _levels(levels: Sequence[int]) -> bytes:
    return b"".join(b"\x02" + bytes([level]) for level in levels)


def _plain(value: int | str, kind: str) -> bytes:
    if isinstance(value, str):
        return len(value.encode()).to_bytes(4, "little") + value.encode()
    return value.to_bytes(4 if kind == "INT32" else 8, "little", signed=True)


def packed(indices: Sequence[int], width: int, groups: int) -> bytes:
    """Indices as one bit-packed run of so many groups of eight, filled up with zeros, and their width before it."""
    number = sum(index << width * place for place, index in enumerate(indices))
    return bytes([width]) + varint(groups << 1 | 1) + number.to_bytes(groups * width, "little")


def made(schema: pa.Schema, *groups: Sequence[Sequence[Page]]) -> bytes:
    """A file of a schema; of each row group, the pages of each leaf. The first leaf says how many rows there are."""
    empty = io.BytesIO()
    pq.write_table(schema.empty_table(), empty, store_schema=False)
    like, footer = pq.ParquetFile(empty), CompactWriter()
    body, told, total = bytearray(b"PAR1"), b"", 0
    for group in groups:
        chunks, rows = [], []
        for place, pages in enumerate(group):
            chunk, begun = _chunk(body, like.schema.column(place), pages)
            chunks.append(chunk)
            rows.append(begun)
        total += rows[0]
        columns = CompactWriter.list_header(STRUCT, len(chunks)) + b"".join(chunks)
        told += _struct((1, LIST, columns), (2, I64, zigzag(len(body))), (3, I64, zigzag(rows[0])))
    footer.field(1, I32, zigzag(1))
    footer.field(2, LIST, _schema(empty.getvalue()))
    footer.field(3, I64, zigzag(total))
    footer.field(4, LIST, CompactWriter.list_header(STRUCT, len(groups)) + told)
    end = footer.end()
    return bytes(body) + end + len(end).to_bytes(4, "little") + b"PAR1"


def _chunk(body: bytearray, leaf: pq.ColumnSchema, pages: Sequence[Page]) -> tuple[bytes, int]:
    encoded, begin = [page.encoded(leaf) for page in pages], len(body)
    data = begin + len(encoded[0][0]) * pages[0].is_dictionary
    body += b"".join(each for each, _, _ in encoded)
    size, path = zigzag(len(body) - begin), leaf.path.split(".")
    fields = [
        (1, I32, zigzag(TYPES[leaf.physical_type])),
        (2, LIST, CompactWriter.list_header(I32, 3) + zigzag(0) + zigzag(3) + zigzag(8)),
        (
            3,
            LIST,
            CompactWriter.list_header(BINARY, len(path)) + b"".join(CompactWriter.binary(x.encode()) for x in path),
        ),
        (4, I32, zigzag(0)),
        (5, I64, zigzag(sum(count for _, count, _ in encoded))),
        (6, I64, size),
        (7, I64, size),
        (9, I64, zigzag(data)),
        *([(11, I64, zigzag(begin))] if pages[0].is_dictionary else []),
    ]
    chunk = _struct((2, I64, zigzag(0)), (3, STRUCT, _struct(*fields)))
    return chunk, sum(rows for _, _, rows in encoded)


def _struct(*fields: tuple[int, int, bytes]) -> bytes:
    writer = CompactWriter()
    for field, kind, value in fields:
        writer.field(field, kind, value)
    return writer.end()


def _schema(body: bytes) -> bytes:
    length = int.from_bytes(body[-8:-4], "little")
    reader = CompactReader(body[-8 - length : -8])
    for field, kind in reader.fields():
        begin = reader.position
        reader.skip(kind)
        if field == 2:
            return bytes(reader.data[begin : reader.position])
    raise AssertionError("a footer has a schema")

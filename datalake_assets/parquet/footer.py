"""The footer of a Parquet file: its row groups, and what decides whether they may stand in one file with others.

A footer is parsed without decoding what stays as it is (`row_groups.py`), in time and memory proportional to its size,
and trusted in nothing: whatever is wrong with it is an `UnreadableFile`.

Source: apache/parquet-format, src/main/thrift/parquet.thrift: FileMetaData.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from datalake_assets.errors import UnreadableFile
from datalake_assets.parquet.field_names import FILE_METADATA, fault
from datalake_assets.parquet.keys import ARROW_SCHEMA, arrow_meaning, file_meaning
from datalake_assets.parquet.row_groups import (
    EXTENSION,
    MAGIC,
    Layout,
    Leaf,
    RowGroup,
    parse_row_group,
    parse_schema,
)
from datalake_assets.parquet.thrift import BINARY, I32, I64, LIST, CompactReader, MalformedThrift, UndecodableThrift

__all__ = [
    "TAIL_BYTES",
    "Footer",
    "ReadAt",
    "RowGroup",
    "footer_fault",
    "key_values_of",
    "parse_footer",
    "read_exactly",
]

#: (offset, length) -> exactly those bytes; they may be overwritten by the next call.
ReadAt = Callable[[int, int], bytes | memoryview]

ENCRYPTED_MAGIC = b"PARE"
#: Of a file: its footer's length and the magic.
TAIL_BYTES = 8
FIRST_READ_BYTES = 64 * 1024  # holds most footers whole
#: Footers of a hundred thousand column chunks take half of it; more than that is damage, or meant to do harm.
MAX_FOOTER_BYTES = 64 << 20

#: Field of the schema in FileMetaData.
SCHEMA_FIELD = 2
#: Readers keep lists of releases whose statistics are wrong: of parquet-mr, and of parquet-cpp before it was Arrow's
#: (arrow-cpp, ApplicationVersion::HasCorrectStatistics; parquet-java, CorruptStatistics).
TRUSTED = re.compile(rb"parquet-cpp-arrow|parquet-rs|DuckDB|Polars")


@dataclass(frozen=True, slots=True)
class Footer:
    """What a file's footer says.

    Attributes:
        rows: Of the whole file.
        size_bytes: Of the whole file.
        row_groups: In the order of their rows.
        schema_key: Equal for files whose row groups may stand in one file. It covers the schema (names, types,
            repetition, field ids, logical types), column orders, the key-values that say how values are to be read,
            and `created_by`: readers distrust the statistics of some old releases by it, so that one file cannot speak
            for two of them. Releases that nobody distrusts count as one.
        key_value_metadata: Of the file; values that are missing are empty.
        where: What was read, for messages.
        version: Of the format.
        data: The encoded footer.
        columns: Their paths, in the order of column chunks.
        layouts: How the row groups' metadata is rewritten, in their order.
        fields: The other fields that go into a footer for the same schema: kind and encoded value by id.
    """

    rows: int
    size_bytes: int
    row_groups: tuple[RowGroup, ...]
    schema_key: bytes
    key_value_metadata: Mapping[bytes, bytes]
    where: str = field(repr=False)
    version: int = field(repr=False)
    data: bytes = field(repr=False)
    columns: tuple[str, ...] = field(repr=False)
    layouts: tuple[Layout, ...] = field(repr=False)
    fields: Mapping[int, tuple[int, bytes]] = field(repr=False)

    @property
    def end_of_data(self) -> int:
        """Where the footer begins."""
        return self.size_bytes - TAIL_BYTES - len(self.data)


def parse_footer(read_at: ReadAt, size_bytes: int, *, where: str) -> Footer:
    """Reads and parses a file's footer; two reads at most, and mostly one.

    Args:
        read_at: Reads the file; what it raises is passed on.
        size_bytes: Of the whole file.
        where: The file, for messages.

    Raises:
        UnreadableFile: It is not a Parquet file that can be read: truncated, damaged, encrypted, or something else.
    """
    data = _read_footer(read_at, size_bytes, where)
    return _parsed(data, size_bytes, where)


def footer_fault(data: bytes, size_bytes: int) -> str:
    """What is wrong with an encoded footer, for a person; empty if nothing is found.

    Args:
        data: The footer.
        size_bytes: Of the whole file.
    """
    try:
        _parsed(data, size_bytes, "")
    except UnreadableFile as error:
        return error.reason
    return ""


def key_values_of(encoded: bytes) -> dict[bytes, bytes]:
    """The key-values of a footer's list of them; values that are missing are empty.

    Raises:
        MalformedThrift: It is none.
    """
    if not encoded:
        return {}
    reader = CompactReader(encoded)
    return dict(_key_value(reader) for _ in range(reader.structs(LIST)))


def _parsed(data: bytes, size_bytes: int, where: str) -> Footer:
    try:
        return _FooterParser(data, size_bytes, where).parse()
    except (UndecodableThrift, KeyError) as error:
        reason = fault(data, FILE_METADATA) or f"it cannot be decoded: {error}"
        raise UnreadableFile(where, f"its footer is damaged: {reason}") from error
    except MalformedThrift as error:
        raise UnreadableFile(where, f"its footer is damaged: {error}") from error


def read_exactly(read_at: ReadAt, offset: int, length: int, *, where: str) -> bytes | memoryview:
    """The bytes; `UnreadableFile` when there are fewer."""
    data = read_at(offset, length)
    if len(data) != length:
        raise UnreadableFile(where, f"it ends before byte {offset + length}")
    return data


def _read_footer(read_at: ReadAt, size_bytes: int, where: str) -> bytes:
    smallest = len(MAGIC) + TAIL_BYTES
    if size_bytes < smallest:
        raise UnreadableFile(where, f"{size_bytes} bytes are too few for a Parquet file")
    length = min(size_bytes, FIRST_READ_BYTES)
    tail = bytes(read_exactly(read_at, size_bytes - length, length, where=where))
    if tail.endswith(ENCRYPTED_MAGIC):
        raise UnreadableFile(where, "it is encrypted")
    if not tail.endswith(MAGIC) or (length == size_bytes and not tail.startswith(MAGIC)):
        raise UnreadableFile(where, "it is not a Parquet file, or was truncated")
    length = int.from_bytes(tail[-TAIL_BYTES : -len(MAGIC)], "little")
    if length > size_bytes - smallest:
        raise UnreadableFile(where, f"its footer of {length} bytes does not fit into it")
    if length > MAX_FOOTER_BYTES:
        raise UnreadableFile(where, f"its footer takes {length} bytes")
    if length + TAIL_BYTES > len(tail):
        return bytes(read_exactly(read_at, size_bytes - TAIL_BYTES - length, length, where=where))
    return tail[len(tail) - TAIL_BYTES - length : -TAIL_BYTES]


class _FooterParser:
    def __init__(self, data: bytes, size_bytes: int, where: str) -> None:
        self._reader, self._size_bytes, self._where = CompactReader(data), size_bytes, where
        self._limit = size_bytes - TAIL_BYTES - len(data)
        self._numbers: dict[int, int] = {}
        self._leaves: list[Leaf] = []
        self._elements = b""
        self._groups: list[tuple[RowGroup, Layout]] | None = None
        self._key_values: dict[bytes, bytes] = {}
        self._fields: dict[int, tuple[int, bytes]] = {}

    def parse(self) -> Footer:
        reader = self._reader
        for number, kind in reader.fields():
            begin = reader.position
            self._field(number, kind)
            if number not in (1, 3, 4, 5, EXTENSION):
                if reader.position == begin:
                    reader.skip(kind)
                self._fields[number] = (kind, reader.data[begin : reader.position])
        if reader.position != len(reader.data):
            raise MalformedThrift("bytes follow its end")
        rows = self._numbers[3]
        if self._groups is None or SCHEMA_FIELD not in self._fields:
            raise MalformedThrift("it has no row groups, or no schema")
        there = sum(group.rows for group, _ in self._groups)
        if there != rows:
            raise MalformedThrift(f"it says {rows} rows, and its row groups {there}")
        return Footer(
            rows=rows,
            size_bytes=self._size_bytes,
            row_groups=tuple(group for group, _ in self._groups),
            schema_key=self._schema_key(),
            key_value_metadata=self._key_values,
            where=self._where,
            version=self._numbers[1],
            data=reader.data,
            columns=tuple(leaf.path for leaf in self._leaves),
            layouts=tuple(layout for _, layout in self._groups),
            fields=self._fields,
        )

    def _field(self, number: int, kind: int) -> None:
        reader = self._reader
        if number in (1, 3):
            self._numbers[number] = reader.integer(kind, I32 if number == 1 else I64)
        elif number == SCHEMA_FIELD:
            self._leaves, self._elements = _schema_here(reader, kind)
        elif number == 4:  # noqa: PLR2004  # row_groups
            self._groups = [self._row_group(number) for number in range(reader.structs(kind))]
        elif number == 5:  # noqa: PLR2004  # key_value_metadata
            self._key_values = dict(_key_value(reader) for _ in range(reader.structs(kind)))
        elif number == 6:  # noqa: PLR2004  # created_by
            reader.binary(kind)
        elif number in (8, 9):
            raise MalformedThrift("its columns may be encrypted")

    def _row_group(self, number: int) -> tuple[RowGroup, Layout]:
        try:
            return parse_row_group(self._reader, self._leaves, limit=self._limit)
        except UndecodableThrift:
            raise
        except MalformedThrift as error:
            raise MalformedThrift(f"row group {number}: {error}") from error

    def _schema_key(self) -> bytes:
        """Field 2 is the schema with its root; unknown fields are counted, so that none is applied wrongly."""
        digest = hashlib.blake2b(self._elements, digest_size=16)
        others = [(number, _without_version(value)) for number, value in self._fields.items() if number != SCHEMA_FIELD]
        digest.update(repr(others).encode())
        digest.update(repr(file_meaning(self._key_values)).encode())
        digest.update(arrow_meaning(self._key_values.get(ARROW_SCHEMA, b"")))
        return digest.digest()


#: The schema that was parsed last, as it is encoded, which the next file most likely has too: of files with a few row
#: groups it takes a fifth of the time of their footers.
_last: tuple[int, bytes, list[Leaf], bytes] | None = None


def _schema_here(reader: CompactReader, kind: int) -> tuple[list[Leaf], bytes]:
    """What `parse_schema` finds here. It goes by the bytes of the schema alone: equal ones are equal schemas."""
    global _last  # noqa: PLW0603  replaced as a whole
    known, begin = _last, reader.position
    if known is not None and known[0] == kind and reader.data.startswith(known[1], begin):
        reader.position = begin + len(known[1])
        return known[2], known[3]
    leaves, elements = parse_schema(reader, kind)
    _last = kind, reader.data[begin : reader.position], leaves, elements
    return leaves, elements


def _without_version(value: tuple[int, bytes]) -> tuple[int, bytes]:
    """Names the writer in `created_by`; its version counts only if readers distrust statistics of some release."""
    kind, encoded = value
    trusted = TRUSTED.search(encoded) if kind == BINARY else None
    return (kind, trusted.group()) if trusted else value


def _key_value(reader: CompactReader) -> tuple[bytes, bytes]:
    texts = {1: b"", 2: b""}
    for number, kind in reader.fields():
        if number in texts:
            texts[number] = reader.binary(kind)
    return texts[1], texts[2]

"""What is wrong with an encoded footer or page header, in the names that the format gives to its fields.

Parsers of both are fast, and know fields by number. Once one of them has failed, this looks through the same bytes
again, slowly, and says which field of which column it is, and what belongs there.

Source: apache/parquet-format, src/main/thrift/parquet.thrift.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from datalake_assets.parquet.row_groups import parse_schema
from datalake_assets.parquet.thrift import (
    BINARY,
    BYTE,
    DOUBLE,
    FALSE,
    I16,
    I32,
    I64,
    LIST,
    MAP,
    SET,
    STRUCT,
    TRUE,
    CompactReader,
    MalformedThrift,
)

__all__ = ["FILE_METADATA", "PAGE_HEADER", "fault"]

_KINDS = {
    TRUE: "a flag",
    FALSE: "a flag",
    BYTE: "a byte",
    I16: "a 16-bit number",
    I32: "a 32-bit number",
    I64: "a 64-bit number",
    DOUBLE: "a floating-point number",
    BINARY: "a text",
    LIST: "a list",
    SET: "a set",
    MAP: "a map",
    STRUCT: "a struct",
}


class _Field(NamedTuple):
    """What belongs into a field; ``inner`` are the fields of a struct, or of each struct of a list."""

    name: str
    kind: int
    inner: Mapping[int, _Field] | None = None
    is_required: bool = True


def _optional(name: str, kind: int, inner: Mapping[int, _Field] | None = None) -> _Field:
    return _Field(name, kind, inner, is_required=False)


_KEY_VALUE = {1: _Field("key", BINARY), 2: _optional("value", BINARY)}
_ELEMENT = {
    1: _optional("type", I32),
    2: _optional("type_length", I32),
    3: _optional("repetition_type", I32),
    4: _Field("name", BINARY),
    5: _optional("num_children", I32),
    6: _optional("converted_type", I32),
    7: _optional("scale", I32),
    8: _optional("precision", I32),
    9: _optional("field_id", I32),
    10: _optional("logicalType", STRUCT),
}
_COLUMN = {
    1: _Field("type", I32),
    2: _Field("encodings", LIST),
    3: _Field("path_in_schema", LIST),
    4: _Field("codec", I32),
    5: _Field("num_values", I64),
    6: _Field("total_uncompressed_size", I64),
    7: _Field("total_compressed_size", I64),
    8: _optional("key_value_metadata", LIST, _KEY_VALUE),
    9: _Field("data_page_offset", I64),
    10: _optional("index_page_offset", I64),
    11: _optional("dictionary_page_offset", I64),
    12: _optional("statistics", STRUCT),
    13: _optional("encoding_stats", LIST),
    14: _optional("bloom_filter_offset", I64),
    15: _optional("bloom_filter_length", I32),
    16: _optional("size_statistics", STRUCT),
    17: _optional("geospatial_statistics", STRUCT),
}
_CHUNK = {
    1: _optional("file_path", BINARY),
    2: _Field("file_offset", I64),
    3: _Field("meta_data", STRUCT, _COLUMN),
    4: _optional("offset_index_offset", I64),
    5: _optional("offset_index_length", I32),
    6: _optional("column_index_offset", I64),
    7: _optional("column_index_length", I32),
    8: _optional("crypto_metadata", STRUCT),
    9: _optional("encrypted_column_metadata", BINARY),
}
_ROW_GROUP = {
    1: _Field("columns", LIST, _CHUNK),
    2: _Field("total_byte_size", I64),
    3: _Field("num_rows", I64),
    4: _optional("sorting_columns", LIST),
    5: _optional("file_offset", I64),
    6: _optional("total_compressed_size", I64),
    7: _optional("ordinal", I16),
}
FILE_METADATA = {
    1: _Field("version", I32),
    2: _Field("schema", LIST, _ELEMENT),
    3: _Field("num_rows", I64),
    4: _Field("row_groups", LIST, _ROW_GROUP),
    5: _optional("key_value_metadata", LIST, _KEY_VALUE),
    6: _optional("created_by", BINARY),
    7: _optional("column_orders", LIST),
    8: _optional("encryption_algorithm", STRUCT),
    9: _optional("footer_signing_key_metadata", BINARY),
}
_DATA_PAGE = {
    1: _Field("num_values", I32),
    2: _Field("encoding", I32),
    3: _Field("definition_level_encoding", I32),
    4: _Field("repetition_level_encoding", I32),
    5: _optional("statistics", STRUCT),
}
_DICTIONARY_PAGE = {1: _Field("num_values", I32), 2: _Field("encoding", I32), 3: _optional("is_sorted", TRUE)}
_DATA_PAGE_V2 = {
    1: _Field("num_values", I32),
    2: _Field("num_nulls", I32),
    3: _Field("num_rows", I32),
    4: _Field("encoding", I32),
    5: _Field("definition_levels_byte_length", I32),
    6: _Field("repetition_levels_byte_length", I32),
    7: _optional("is_compressed", TRUE),
    8: _optional("statistics", STRUCT),
}
PAGE_HEADER = {
    1: _Field("type", I32),
    2: _Field("uncompressed_page_size", I32),
    3: _Field("compressed_page_size", I32),
    4: _optional("crc", I32),
    5: _optional("data_page_header", STRUCT, _DATA_PAGE),
    6: _optional("index_page_header", STRUCT),
    7: _optional("dictionary_page_header", STRUCT, _DICTIONARY_PAGE),
    8: _optional("data_page_header_v2", STRUCT, _DATA_PAGE_V2),
}
#: What the structs of a list are called, by its field.
_OF_LISTS = {
    "schema": "element {} of the schema",
    "row_groups": "row group {}",
    "columns": "column {}",
    "key_value_metadata": "key-value {}",
}


class _Fault(Exception):
    """The first thing that is wrong."""


def fault(data: bytes, fields: Mapping[int, _Field], *, owner: str = "") -> str:
    """The first field that is not what belongs there, for a person; empty if all are.

    Args:
        data: An encoded struct.
        fields: `FILE_METADATA` or `PAGE_HEADER`.
        owner: What the struct is called; empty if there is only one.
    """
    walk = _Walk(data)
    try:
        walk.struct(fields, [owner] if owner else [])
    except _Fault as found:
        return str(found)
    return ""


class _Walk:
    def __init__(self, data: bytes) -> None:
        self._reader = CompactReader(data)
        self._columns: list[str] = []  # paths of the columns, once the schema was passed

    def struct(self, fields: Mapping[int, _Field], owners: list[str]) -> None:
        """Passes over a struct; ``owners`` are what it is part of, the nearest first."""
        seen, before = set[int](), "the beginning"
        try:
            for number, kind in self._reader.fields():
                seen.add(number)
                field = fields.get(number)
                before = f"field {number}" if field is None else field.name
                if field is not None:
                    self._value(field, kind, owners)
                else:
                    self._reader.skip(kind)
        except MalformedThrift as error:
            raise _Fault(_of(before, owners) + f" cannot be decoded: {error}") from error
        for number, field in fields.items():
            if field.is_required and number not in seen:
                raise _Fault(f"{_of(field.name, owners)} is missing")

    def _value(self, field: _Field, kind: int, owners: list[str]) -> None:
        is_flag = {field.kind, kind} <= {TRUE, FALSE}
        if kind != field.kind and not is_flag:
            found = _KINDS.get(kind, f"of the unknown kind {kind}")
            raise _Fault(f"{_of(field.name, owners)} is {found}, and {_KINDS[field.kind]} belongs there")
        begin = self._reader.position
        if field.inner is None:
            self._reader.skip(kind)
        elif kind == STRUCT:
            self.struct(field.inner, owners if field.name == "meta_data" else [field.name, *owners])
        else:
            for number in range(self._reader.structs(kind)):
                self.struct(field.inner, [self._named(field.name, number), *owners])
        if field.name == "schema":
            with suppress(MalformedThrift):  # then columns have their numbers for names
                leaves, _ = parse_schema(CompactReader(self._reader.data, begin), kind)
                self._columns = [leaf.path for leaf in leaves]

    def _named(self, of_list: str, number: int) -> str:
        if of_list == "columns" and number < len(self._columns):
            return f"column {self._columns[number]!r}"
        return _OF_LISTS[of_list].format(number)


def _of(name: str, owners: list[str]) -> str:
    return " of ".join([name, *owners])

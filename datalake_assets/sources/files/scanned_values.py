"""What the scanner says of a block of CSV records: the kinds of its columns, and its rows.

It decides what is quickly decided. Whatever it leaves is None here, and is looked at and read by Arrow (`csv_values`),
with the same answers.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import pyarrow as pa

from datalake_assets.sources.files.csv_records import Block, CsvDialect, form_of
from datalake_assets.sources.files.csv_scan import Expected, Look, Scanned, can_make, load_scanner
from datalake_assets.sources.files.text_values import DOUBLE_DIGITS, MICRO_DIGITS, NANO_DIGITS, Kind, joined

__all__ = ["are_numbers", "kinds_and_rows", "rows_at_once"]

#: What is expected of a column of a type, but for decimals and times.
_EXPECTED_OF: Mapping[pa.DataType, Expected] = {
    pa.bool_(): Expected.BOOL,
    pa.int32(): Expected.NUMBER,
    pa.int64(): Expected.NUMBER,
    pa.float64(): Expected.DOUBLE,
    pa.date32(): Expected.DATE,
}


def _look_for(kind: pa.DataType, *, is_settled: bool) -> Look:
    """What to look for in a column that is wanted in a type; `csv_values.decode` says which are settled."""
    if pa.types.is_timestamp(kind):  # nobody minds the form of a time
        most = NANO_DIGITS if kind.unit == "ns" else MICRO_DIGITS
        return Look(Expected.ZONED if kind.tz else Expected.TIME, most, kind, is_settled=True)
    expected = Expected.NUMBER if pa.types.is_decimal(kind) else _EXPECTED_OF.get(kind, Expected.ANY)
    return Look(expected, type=kind, is_settled=is_settled, is_exact=False)


def _rows_of(scanned: Sequence[Scanned], names: Sequence[str], schema: pa.Schema) -> pa.RecordBatch | None:
    """The rows that the scanner has made; None if some values were left to others."""
    made = {name: each.array for name, each in zip(names, scanned, strict=True)}
    columns = [array for each in schema if (array := made[each.name]) is not None]
    return pa.RecordBatch.from_arrays(columns, schema=schema) if len(columns) == len(schema) else None


def rows_at_once(
    block: Block, names: Sequence[str], schema: pa.Schema, dialect: CsvDialect, *, settled: Container[str]
) -> pa.RecordBatch | None:
    """The rows of a block, if all its values are of their types; None if somebody else has to look.

    Args:
        block: The block.
        names: The file's columns.
        schema: Those that are wanted.
        dialect: How the file is written.
        settled: Columns whose numbers have the right form.
    """
    if not len(schema) or not all(can_make(each.type) for each in schema):
        return None
    looks = {each.name: _look_for(each.type, is_settled=each.name in settled) for each in schema}
    made = _scan(block, names, looks, dialect)
    return None if made is None else _rows_of(made, names, schema)


def are_numbers(block: Block, names: Sequence[str], numbers: Sequence[pa.Field], dialect: CsvDialect) -> bool:
    """Whether all numbers of some columns have the form that they keep in Arrow; else nobody knows."""
    if any(pa.types.is_floating(each.type) and not pa.types.is_float64(each.type) for each in numbers):
        return False
    forms = {each.name: Expected.DOUBLE if pa.types.is_floating(each.type) else Expected.NUMBER for each in numbers}
    return _scan(block, names, {name: Look(form, is_exact=False) for name, form in forms.items()}, dialect) is not None


#: What is expected of a column that was of a kind.
_EXPECTED: Mapping[str, Expected] = {
    "null": Expected.NOTHING,
    "empty": Expected.EMPTY,
    "bool": Expected.BOOL,
    "integer": Expected.NUMBER,
    "decimal": Expected.NUMBER,
    "double": Expected.DOUBLE,
    "date": Expected.DATE,
    "time": Expected.TIME,
    "zoned": Expected.ZONED,
    "text": Expected.ANY,
}


def _scan(block: Block, names: Sequence[str], looks: Mapping[str, Look], dialect: CsvDialect) -> list[Scanned] | None:
    """What the scanner says of a block; None if there is none, or it is not sure."""
    scanner = load_scanner()
    if scanner is None or not block.is_plain or block.unended or "" not in dialect.nulls:
        return None
    if not (dialect.is_utf8 or block.data.isascii()):
        return None
    lines = len(block.data) if block.lines is None else block.lines
    return scanner.scan(block.data, [looks.get(name, Look()) for name in names], form_of(dialect), lines=lines)


def kinds_and_rows(
    block: Block,
    names: Sequence[str],
    kinds: Mapping[str, Kind],
    types: Mapping[str, pa.DataType],
    dialect: CsvDialect,
    *,
    exact: bool,
) -> tuple[dict[str, Kind] | None, pa.RecordBatch | None]:
    """The kinds with a block's values, if these are of them; None if somebody else has to look. And its rows, likewise.

    Args:
        block: The block.
        names: The file's columns.
        kinds: What some of them are.
        types: The types of all, so that there are rows; or none.
        dialect: How the file is written.
        exact: As `csv_values.infer` takes it.
    """
    has_rows = bool(types) and all(can_make(kind) for kind in types.values())
    looks = {name: _look_for(kind, is_settled=True) for name, kind in types.items()} if has_rows else {}
    for name, kind in kinds.items():
        most = NANO_DIGITS if kind.scale > MICRO_DIGITS else MICRO_DIGITS
        looks[name] = Look(_EXPECTED[kind.name], most, types[name] if has_rows else None, is_exact=exact)
    seen = _scan(block, names, looks, dialect)
    if seen is None:
        return None, None
    found = {name: _with_numbers(kinds[name], each) for name, each in zip(names, seen, strict=True) if name in kinds}
    schema = pa.schema([(name, types[name]) for name in names if name in types])
    return found, _rows_of(seen, names, schema) if has_rows else None


def _with_numbers(kind: Kind, seen: Scanned) -> Kind:
    """A kind with the digits that were seen."""
    if not seen.values:
        return kind
    if kind.name in {"time", "zoned"}:
        return joined(kind, Kind(kind.name, scale=kind.scale, is_far=seen.is_far))
    if kind.name not in {"integer", "decimal"}:
        return kind
    is_short = seen.digits + seen.scale <= DOUBLE_DIGITS
    fits = True if is_short or not seen.in_doubt else None
    return joined(kind, Kind("decimal" if seen.has_point else "integer", seen.digits, seen.scale, fits))

"""What is in a block of CSV records: rows of typed columns, and the records that are none.

The scanner, or else Arrow, decodes a block at once where every quote stands where quotes may stand, every record has
the file's number of fields and every value is of its column's type. Otherwise the block is decoded again with care:
records are told apart, those that do not fit are put aside with their lines, and the rest is landed.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from datalake_assets.core.arrow_arrays import of_numbers
from datalake_assets.sources.files.csv_records import (
    MAX_RECORD_BYTES,
    Block,
    CsvDialect,
    Records,
    first_records,
    line_ends,
    records_of,
)
from datalake_assets.sources.files.csv_scan import load_scanner
from datalake_assets.sources.files.scanned_values import are_numbers, kinds_and_rows, rows_at_once
from datalake_assets.sources.files.text_values import (
    DOUBLE_DIGITS,
    FALSE,
    NUMBERS,
    TEXT,
    TRUE,
    Kind,
    all_kept,
    are_double,
    classified,
    converted,
    doubles,
    joined,
    may_have_exponents,
    may_have_hexadecimals,
    needs_a_look,
    times,
)

__all__ = ["KEPT_BYTES", "BadRecord", "Parsed", "decode", "decode_and_infer", "infer", "too_long"]

#: Bytes of a bad record that are kept of it; the file has the rest.
KEPT_BYTES = 64 << 10
#: Bytes of the first block that say what the columns are, before the rest of it is only scanned.
SAMPLED_BYTES = 64 << 10
_MARK = b"\xef\xbb\xbf"

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that cannot be landed: the line on which it begins, the reason, and its first bytes."""

    line: int
    reason: str
    raw: bytes


@dataclass(slots=True)
class Parsed:
    """What is in a block.

    Attributes:
        rows: Its good records, in the columns that were asked for.
        bad: The others.
        lines: The line of each row; None where nobody had to look.
    """

    rows: pa.RecordBatch
    bad: list[BadRecord] = field(default_factory=list)


def too_long(what: str) -> str:
    """The reason why a file was read up to here only."""
    return (
        f"a {what} that begins here has no end, or is longer than {MAX_RECORD_BYTES >> 20} MiB; the rest of the file"
        " was not read"
    )


def decode(
    block: Block,
    names: Sequence[str],
    types: Mapping[str, pa.DataType],
    dialect: CsvDialect,
    *,
    declared: Container[str],
    verified: Container[str] = frozenset(),
    was_scanned: bool = False,
) -> Parsed:
    """The rows of a block.

    Args:
        block: The block, of records without a header.
        names: The file's columns, in its order.
        types: The columns that are wanted, with their types.
        dialect: How the file is written.
        declared: Columns whose types a person chose.
        verified: Columns of which `infer` has seen that all good records of the file have values of their type.
        was_scanned: The scanner has not made these rows; it need not be asked again.
    """
    schema = pa.schema([(name, types[name]) for name in names if name in types])
    if block.unended:
        return Parsed(_nothing(schema), [BadRecord(block.line, too_long("record"), block.data[:KEPT_BYTES])])
    if block.is_plain:
        settled = {each.name for each in schema if each.name in declared or each.name in verified}
        rows = None if was_scanned else rows_at_once(block, names, schema, dialect, settled=settled)
        if rows is None:
            rows = _decoded_at_once(block, names, schema, dialect, settled, declared=declared)
        if rows is not None:
            return Parsed(rows)
    return _decoded_with_care(block, names, schema, dialect, declared)


def _nothing(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(0, each.type) for each in schema], schema=schema)


def _read(data: bytes, names: Sequence[str], types: Mapping[str, pa.DataType], dialect: CsvDialect) -> pa.RecordBatch:
    if data.startswith(_MARK):  # in the middle of a file it is a letter, and Arrow would take it away
        data = b"\n" + data
    if not data.endswith((b"\n", b"\r")):  # or Arrow takes an empty field at the end for quoted, if the one before is
        data += b"\n"
    table = pa_csv.read_csv(
        pa.BufferReader(data),
        pa_csv.ReadOptions(use_threads=False, column_names=list(names), block_size=len(data) + 1),
        pa_csv.ParseOptions(
            delimiter=dialect.delimiter, quote_char=dialect.quote or False, newlines_in_values=bool(dialect.quote)
        ),
        pa_csv.ConvertOptions(
            column_types=dict(types),
            include_columns=list(types),
            null_values=list(dialect.nulls),
            true_values=list(TRUE),
            false_values=list(FALSE),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            check_utf8=not dialect.is_utf8,
        ),
    )
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else _nothing(table.schema)


def _decoded_at_once(
    block: Block,
    names: Sequence[str],
    schema: pa.Schema,
    dialect: CsvDialect,
    settled: Container[str],
    *,
    declared: Container[str] = (),
) -> pa.RecordBatch | None:
    """The rows, if all is well; None if somebody has to look.

    Args:
        block: The block, whose quotes are where they may be.
        names: The file's columns.
        schema: Those that are wanted.
        dialect: How the file is written.
        settled: Columns whose numbers have the right form.
        declared: Those of them whose types a person chose.
    """
    numbers = [each for each in schema if _is_number(each.type) and each.name not in settled]
    if numbers and are_numbers(block, names, numbers, dialect):
        numbers = []
    if numbers and needs_a_look(block.data, dialect.delimiter, dialect.quote):
        return None
    # a double does not say which digits it was written with
    texts = {each.name for each in numbers if pa.types.is_float64(each.type)}
    types = {each.name: pa.string() if each.name in texts else each.type for each in schema}
    try:
        rows = _read(block.data, names, types, dialect)
        columns = [doubles(rows.column(name)) if name in texts else rows.column(name) for name in types]
    except pa.ArrowInvalid:
        return None
    if any(_is_odd(block.data, column, declared=name in declared) for name, column in zip(types, columns, strict=True)):
        return None
    return pa.RecordBatch.from_arrays(columns, schema=schema)


#: What Arrow takes for no number besides NaN and nan, wherever it stands.
_ODD_NAN = re.compile(rb"-[nN][aA][nN]|[nN][aA][nN]\(|(?!nan|NaN)[nN][aA][nN]")


def _is_odd(data: bytes, column: pa.Array, *, declared: bool) -> bool:
    """Whether Arrow may have made a value of what is none: 0x1F, NAN, 1e400, or 123.4 where there are two digits before
    the point and two behind it, since its reader counts a decimal's digits before it adds zeros.

    Args:
        data: The records.
        column: What it made of them.
        declared: Whether a person chose the type; else the form of integers has been looked at.
    """
    kind = column.type
    if pa.types.is_decimal(kind):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            return True
    if pa.types.is_floating(kind):
        return bool(pc.any(pc.is_inf(column)).as_py()) or (
            bool(pc.any(pc.is_nan(column)).as_py()) and _ODD_NAN.search(data) is not None
        )
    return declared and pa.types.is_integer(kind) and may_have_hexadecimals(data)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_decimal(kind) or pa.types.is_floating(kind))


@dataclass(slots=True)
class _Texts:
    """The well-formed records of a block as texts.

    Attributes:
        rows: A column of strings for each of the file's.
        numbers: Which record each row is.
        records: All records.
        bad: Why records are not in ``rows``, by number.
    """

    rows: pa.RecordBatch
    numbers: Ints
    records: Records
    bad: dict[int, str]


def _texts(block: Block, names: Sequence[str], dialect: CsvDialect) -> _Texts:
    records = records_of(block, dialect)
    bad: dict[int, str] = {}
    for number in np.flatnonzero(records.fields != len(names)).tolist():
        bad[number] = f"it has {records.fields[number]} fields, not {len(names)}"
    for number in np.flatnonzero(records.odd).tolist():
        bad[number] = "a field that begins with a quote does not end with one"
    data = block.data
    if not dialect.is_utf8 and not data.isascii():
        for number, (start, end) in enumerate(zip(records.starts.tolist(), records.ends.tolist(), strict=True)):
            try:
                data[start:end].decode()
            except UnicodeDecodeError:
                bad[number] = "it is not in the file's encoding"
    good = np.array([number for number in range(len(records.starts)) if number not in bad], np.int64)
    kept = data
    if bad:
        kept = b"\n".join(data[records.starts[each] : records.ends[each]] for each in good.tolist())
    if len(good):
        rows = _read(kept, names, dict.fromkeys(names, pa.string()), dialect)
    else:
        rows = _nothing(pa.schema([(name, pa.string()) for name in names]))
    if rows.num_rows != len(good):
        raise AssertionError(f"{rows.num_rows} rows for {len(good)} records")
    return _Texts(rows, good, records, bad)


def _decoded_with_care(
    block: Block, names: Sequence[str], schema: pa.Schema, dialect: CsvDialect, declared: Container[str]
) -> Parsed:
    texts = _texts(block, names, dialect)
    fits = np.ones(texts.rows.num_rows, np.bool_)
    columns = []
    for each in schema:
        column = texts.rows.column(each.name)
        values, good = converted(column, each.type, declared=each.name in declared)
        for row in np.flatnonzero(~good & fits).tolist():
            texts.bad[int(texts.numbers[row])] = f"column {each.name!r}: a value is no {each.type}"
        fits &= good
        columns.append(values)
    rows = pa.RecordBatch.from_arrays(columns, schema=schema)
    return Parsed(rows if fits.all() else rows.filter(of_numbers(fits)), _bad_records(block, texts))


def _bad_records(block: Block, texts: _Texts) -> list[BadRecord]:
    if not texts.bad:
        return []
    ends = line_ends(np.frombuffer(block.data, np.uint8), is_end=True)
    found = []
    for number, reason in sorted(texts.bad.items()):
        start, end = int(texts.records.starts[number]), int(texts.records.ends[number])
        line = block.line + int(np.searchsorted(ends, start))
        found.append(BadRecord(line, reason, block.data[start : min(end, start + KEPT_BYTES)]))
    return found


def infer(
    block: Block,
    names: Sequence[str],
    known: Mapping[str, Kind],
    dialect: CsvDialect,
    *,
    declared: Container[str],
    exact: bool = True,
) -> dict[str, Kind]:
    """What the columns are, given what they were before this block; no more is looked at than has to be.

    Args:
        block: The block.
        names: The file's columns.
        known: What the columns were.
        dialect: How the file is written.
        declared: Columns whose types a person chose.
        exact: Look whether doubles keep the digits of other numbers, too, which matters only if there are doubles.
    """
    wanted = [name for name in names if name not in declared]
    if block.unended or not wanted:
        return dict(known)
    if not known and len(block.data) > SAMPLED_BYTES and load_scanner() is not None:
        sample = first_records(block, SAMPLED_BYTES, dialect)
        known = {} if sample is None else infer(sample, names, {}, dialect, declared=declared, exact=exact)
    if known:
        scanned, _ = kinds_and_rows(block, names, {name: known[name] for name in wanted}, {}, dialect, exact=exact)
        if scanned is not None and (not exact or all(each.fits_double is not None for each in scanned.values())):
            return {**known, **scanned}
    if block.is_plain and known:
        # a text column stays one, and of texts there is nothing to see but whether they are UTF-8
        open_ = {name: known[name] for name in wanted if known[name] != TEXT or not dialect.is_utf8}
        seen = _verified(block, names, open_, {}, dialect, exact=exact) if open_ else (None, {})
        if seen is not None:
            return {**known, **seen[1]}
    rows = _texts(block, names, dialect).rows
    found = {name: joined(known.get(name, Kind()), classified(rows.column(name))) for name in wanted}
    return {**known, **found}


def decode_and_infer(
    block: Block,
    names: Sequence[str],
    known: Mapping[str, Kind],
    types: Mapping[str, pa.DataType],
    dialect: CsvDialect,
    *,
    declared: Container[str],
) -> tuple[Parsed | None, dict[str, Kind]]:
    """The rows of a block, and what the columns are, by one parse; no rows if a column has another type by now.

    It is not looked whether doubles keep the digits of other numbers.

    Args:
        block: The block.
        names: The file's columns.
        known: What the columns were before this block.
        types: The types of these, and those of columns that are declared; of all columns.
        dialect: How the file is written.
        declared: Columns whose types a person chose.
    """
    kinds = {name: known[name] for name in names if name not in declared}
    found, rows = kinds_and_rows(block, names, kinds, types, dialect, exact=False)
    if found is not None and rows is not None and all(found[name].type == types[name] for name in kinds):
        return Parsed(rows), found
    rows, verified = None, frozenset() if found is None else kinds.keys()
    if found is None and block.is_plain and not block.unended:
        chosen = {name: types[name] for name in names if name in declared}
        rows, found = _verified(block, names, kinds, chosen, dialect, exact=False) or (None, None)
        if rows is not None and any(_is_odd(block.data, rows.column(name), declared=True) for name in chosen):
            rows, found = None, None
    if found is None:
        found = infer(block, names, known, dialect, declared=declared, exact=False)
    if any(found[name].type != types[name] for name in kinds):
        return None, found
    if rows is not None:
        with suppress(pa.ArrowInvalid):  # a number with spaces around it
            columns = [rows.column(name).cast(types[name]) for name in names]
            return Parsed(pa.RecordBatch.from_arrays(columns, list(names))), found
    return decode(block, names, types, dialect, declared=declared, verified=verified, was_scanned=True), found


def _verified(
    block: Block,
    names: Sequence[str],
    kinds: Mapping[str, Kind],
    types: Mapping[str, pa.DataType],
    dialect: CsvDialect,
    *,
    exact: bool,
) -> tuple[pa.RecordBatch, dict[str, Kind]] | None:
    """The rows of a block, and the kinds with its values, if these are of them; None if somebody has to look.

    Args:
        block: The block, whose quotes are where they may be.
        names: The file's columns.
        kinds: What some of them are; these become columns as `_verifying` says.
        types: The types of others.
        dialect: How the file is written.
        exact: As `infer` takes it.
    """
    has_numbers = any(kind.name in NUMBERS for kind in kinds.values())
    if has_numbers and needs_a_look(block.data, dialect.delimiter, dialect.quote):
        return None
    has_decimals = any(kind.name == "decimal" for kind in kinds.values())
    as_texts = {"empty", "double", "time", "zoned"}
    if has_decimals and may_have_exponents(block.data):
        as_texts.add("decimal")
    wanted = {**types, **{name: _verifying(kind, as_texts) for name, kind in kinds.items()}}
    try:
        rows = _read(block.data, names, wanted, dialect)
    except pa.ArrowInvalid:
        return None
    return rows, {name: _widened(kind, rows.column(name), exact=exact) for name, kind in kinds.items()}


def _verifying(kind: Kind, as_texts: Container[str]) -> pa.DataType:
    """A type that takes no value of another kind, or texts.

    A double would take any number, whose digits it may not keep, a decimal one with an exponent, and a time a day.
    """
    return pa.null() if kind.name == "null" else pa.string() if kind.name in as_texts else kind.type


def _widened(kind: Kind, values: pa.Array, *, exact: bool) -> Kind:
    """The kind with the digits that numbers have by now."""
    if values.null_count == len(values) or kind == TEXT:
        return kind
    if kind.name in {"time", "zoned"}:
        return times(values, kind)
    if kind.name == "double" and are_double(values):
        return kind
    if pa.types.is_string(values.type):
        return joined(kind, classified(values))
    if kind.name not in NUMBERS:
        return kind
    bounds = [abs(int(each.as_py())) for each in pc.min_max(values).values()]
    digits = max(kind.digits, *(len(str(each)) if each else 0 for each in bounds))
    fits = kind.fits_double
    if fits is not False and digits + kind.scale > DOUBLE_DIGITS:
        fits = all_kept(values) and fits if exact else None
    return Kind(kind.name, digits, kind.scale, fits)

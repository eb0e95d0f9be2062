"""How results look on a terminal, in a pipe, and as JSON."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import click

__all__ = ["as_csv", "as_table", "bytes_text", "one_line", "plain", "print_json", "say", "warn"]

# control characters, and the two line separators that terminals and line-based tools disagree on
_CONTROL = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
_KILO = 1000


def say(line: str = "") -> None:
    """Prints a line of a result."""
    click.echo(line)


def warn(line: str) -> None:
    """Prints a line beside the result, on stderr."""
    click.echo(one_line(line), err=True)


def one_line(text: str) -> str:
    """The text on one line, with nothing that would move a terminal's cursor."""
    return " ".join(part.strip() for part in text.splitlines() if part.strip()).translate(_CONTROL)


def print_json(document: Any) -> None:
    """Prints one JSON document; values as `plain` makes them."""
    click.echo(json.dumps(plain(document), indent=2, ensure_ascii=False))


def plain(value: Any) -> Any:
    """The value as JSON can have it: exact numbers and times become text, bytes hexadecimal, NaN and infinity text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).hex()
    return value.isoformat() if isinstance(value, (dt.datetime, dt.date, dt.time)) else str(value)


def as_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Aligned columns with a rule below the head; numbers to the right, control characters escaped."""
    from rich.cells import cell_len  # noqa: PLC0415  not needed for --help

    listed = [list(row) for row in rows]
    right = [
        any(row[index] is not None for row in listed)
        and all(row[index] is None or _is_number(row[index]) for row in listed)
        for index in range(len(columns))
    ]
    head = [column.translate(_CONTROL) for column in columns]
    texts = [[_cell(value) for value in row] for row in listed]
    widths = [max(cell_len(row[index]) for row in (head, *texts)) for index in range(len(columns))]

    def line(cells: Sequence[str]) -> str:
        padded = (
            " " * (width - cell_len(cell)) + cell if to_right else cell + " " * (width - cell_len(cell))
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    rule = "  ".join("─" * width for width in widths)
    return "\n".join([line(head), rule, *(line(cells) for cells in texts)])


def as_csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """CSV as RFC 4180 has it, but with plain line ends; NULL is an empty field, nested values are JSON."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_field(value) for value in row] for row in rows)
    return text.getvalue()


def bytes_text(size_bytes: float) -> str:
    """A size for people, in powers of 1000: ``1.2 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < _KILO:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= _KILO
    return f"{size_bytes:,.1f} TB"


def _is_number(value: Any) -> bool:
    if isinstance(value, str):  # counts with separators, sizes and the like, as `bytes_text` and f"{n:,}" make them
        number, _, unit = value.partition(" ")
        return number.lstrip("+-").replace(",", "").replace(".", "").isdecimal() and unit in {"", "B", "kB", "MB", "GB"}
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, (Mapping, list, tuple)):
        return json.dumps(plain(value), ensure_ascii=False).translate(_CONTROL)
    if isinstance(value, float):
        return str(value)
    if isinstance(value, dt.datetime):
        return value.isoformat(sep=" ")
    return str(plain(value)).translate(_CONTROL)


def _field(value: Any) -> Any:
    if isinstance(value, (Mapping, list, tuple)):
        return json.dumps(plain(value), ensure_ascii=False)
    return plain(value)

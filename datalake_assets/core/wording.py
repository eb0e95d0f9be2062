"""Numbers as people read them: sizes, counts, prices, figures in the reasons of a compaction plan; names; CSV and JSON.

A file's name is bytes to the operating system: it may hold line ends, and bytes that are no UTF-8, which Python gives
as lone surrogates. Neither belongs into a line, a log or a JSON document. CSV is written as every reader reads it, and
so that it runs nothing in a spreadsheet.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from typing import Any

__all__ = [
    "CONTROL_ESCAPES",
    "SIZE_UNITS",
    "SURROGATE_ESCAPES",
    "count_text",
    "counted",
    "csv_lines",
    "dollars_text",
    "files_text",
    "many_text",
    "moment_text",
    "name_text",
    "plain",
    "scans_text",
    "short_count",
    "size_text",
    "span_text",
    "spreadsheet_text",
]

#: Bytes that are no UTF-8, as Python gives them (PEP 383), and what else UTF-8 cannot write.
SURROGATE_ESCAPES = {code: f"\\u{code:04x}" for code in range(0xD800, 0xE000)} | {
    0xDC00 + byte: f"\\x{byte:02x}" for byte in range(0x80, 0x100)
}
#: Control characters, and the two line separators that terminals and line-based tools disagree on.
CONTROL_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
_NAME_ESCAPES = SURROGATE_ESCAPES | CONTROL_ESCAPES
_CENT = 0.01
_KILO = 1000
#: What `size_text` counts in.
SIZE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def name_text(name: str) -> str:
    """A file's name for people, with backslash escapes for what is no text of one line."""
    return name.translate(_NAME_ESCAPES)


def count_text(count: float) -> str:
    """``1,200``."""
    return f"{count:,.0f}"


def counted(count: int, what: str) -> str:
    """``1 partition``, ``1,200 partitions``."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def many_text(count: int) -> str:
    """``1,200``; from ten million on ``12.3 million``, ``9.9 billion``."""
    for unit, name in ((10**12, "trillion"), (10**9, "billion"), (10**7, "million")):
        if count >= unit:
            return f"{count / (unit if name != 'million' else 10**6):,.1f} {name}"
    return count_text(count)


def short_count(count: float) -> str:
    """Writes a count in four characters or so, for plots: ``950``, ``1.2k``, ``12k``, ``3.4M``."""
    for unit in ("", "k", "M", "G"):
        if count < _KILO:
            return f"{count:.0f}{unit}" if not unit or count >= 10 else f"{count:.1f}".removesuffix(".0") + unit  # noqa: PLR2004  two digits are enough
        count /= _KILO
    return f"{count:,.0f}T"


def dollars_text(dollars: float) -> str:
    """``$3.10``, ``$1,200``; ``under 1 cent``, and ``$0`` for nothing."""
    if abs(dollars) < _CENT:
        return "under 1 cent" if dollars else "$0"
    sign = "-" if dollars < 0 else ""
    return f"{sign}${abs(dollars):,.2f}" if abs(dollars) < _KILO else f"{sign}${abs(dollars):,.0f}"


def moment_text(at: datetime | None) -> str:
    """``2025-01-15 12:00``, UTC; empty for none."""
    return f"{at:%Y-%m-%d %H:%M}" if at else ""


def scans_text(scans_per_day: float) -> str:
    """``once a day``, ``24 times a day``."""
    return "once a day" if scans_per_day == 1 else f"{scans_per_day:,g} times a day"


def files_text(count: int, kind: str = "") -> str:
    """``1 file``, ``1,200 small files``."""
    return f"{count:,} {kind}file{'' if count == 1 else 's'}"


def size_text(size_bytes: float) -> str:
    """Writes a size in powers of 1024, as the settings are: ``640 B``, ``58.6 KiB``, ``64 MiB``, ``3.1 TiB``."""
    size, unit = round(float(size_bytes), 1), SIZE_UNITS[0]
    for larger in SIZE_UNITS[1:]:
        if size < 1024:  # noqa: PLR2004  # the power
            break
        size, unit = round(size_bytes / 1024 ** SIZE_UNITS.index(larger), 1), larger
    return f"{size:,.1f}".removesuffix(".0") + f" {unit}"


def span_text(length: timedelta) -> str:
    """``45 s``, ``10 min``, ``3 h``, ``2 days``: whole ones, rounded down."""
    seconds = max(0, int(length.total_seconds()))
    for unit, unit_s in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * unit_s:
            return f"{seconds // unit_s} {unit}"
    return f"{seconds} s"


# how a formula begins, also after the quotes that we put before one (OWASP, "CSV Injection")
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")


def csv_lines(rows: Iterable[Sequence[Any]]) -> str:
    """Lines as RFC 4180 has them, but with plain ends; None is an empty field."""
    lines = _Lines()
    # with this end of lines a lone carriage return is quoted too: it would end the line for some readers
    csv.writer(lines, lineterminator="\r\n").writerows(rows)
    return "".join(lines.written)


class _Lines:
    """Takes lines from a CSV writer, and ends them plainly."""

    def __init__(self) -> None:
        self.written: list[str] = []

    def write(self, line: str) -> None:
        """Takes a line."""
        self.written.append(f"{line[:-2]}\n")


def spreadsheet_text(text: str) -> str:
    """A text cell, with a single quote before what a spreadsheet would take for a formula.

    A text that begins with such quotes itself gets one more: who takes one away has the text again.
    """
    return f"'{text}" if _FORMULA.match(text) else text


def plain(value: Any, *, binary: Callable[[bytes], str] = bytes.hex) -> Any:
    """The value as JSON can have it: exact numbers, times, NaN and infinity become text.

    Args:
        value: Whatever a library gives.
        binary: Makes a text of bytes; default: hexadecimal.
    """
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(item, binary=binary) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, binary=binary) for item in value]
    if isinstance(value, str):
        return value.translate(SURROGATE_ESCAPES)
    if value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return binary(bytes(value))
    return value.isoformat() if isinstance(value, (datetime, date, time)) else str(value)

"""What type a column of texts has, and which values, told by Python's own numbers and calendar; and what records are.

Nothing of the product is imported.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

__all__ = ["records_in", "type_of", "value_of"]

DECIMAL = re.compile(r"-?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)")
DOUBLE = re.compile(rf"{DECIMAL.pattern}(?:[eE][-+]?[0-9]+)?|NaN|nan|-?inf|-?Infinity")
DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
TIME = re.compile(
    rf"(?P<minute>{DAY.pattern}[T ][0-9]{{2}}:[0-9]{{2}})(?P<second>:[0-9]{{2}}(?:\.(?P<fraction>[0-9]{{1,9}}))?)?"
    r"(?P<zone>Z|[+-][0-9]{2}(?::?[0-9]{2})?)?"
)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def type_of(texts: Sequence[str | None]) -> str:
    """The name of the type that Arrow gives it; None is null, and an empty text one in quotes."""
    values = [text for text in texts if text]
    if not values:
        return "string"
    if all(text in {"true", "True", "TRUE", "false", "False", "FALSE"} for text in values):
        return "bool"
    plain = [text.strip(" \t") for text in values]
    return _number(plain) or _moment(plain) or "string"


def _number(texts: list[str]) -> str:
    if all(DECIMAL.fullmatch(text) for text in texts):
        if not any("." in text for text in texts) and all(-(2**63) <= int(text) < 2**63 for text in texts):
            return "int64"
        whole = max(len(text.lstrip("-").partition(".")[0].lstrip("0")) for text in texts)
        scale = max(len(text.partition(".")[2]) for text in texts)
        return f"decimal128({18 if whole + scale <= 18 else 38}, {scale})" if whole + scale <= 38 else "string"
    return "double" if all(DOUBLE.fullmatch(text) and _is_kept(text) for text in texts) else ""


def _is_kept(text: str) -> bool:
    value = float(text)
    if text[-1] in "Nnfy":
        return True
    if math.isinf(value):
        return False
    number = Decimal(text)
    digits = number.as_tuple().digits
    if Decimal(f"{value:.{len(digits) - 1}e}") == number:
        return True
    own, shortest = ("".join(map(str, each)).rstrip("0") for each in (digits, Decimal(repr(value)).as_tuple().digits))
    return abs(value) >= 1e-290 and own == shortest


def _moment(texts: list[str]) -> str:
    if all(DAY.fullmatch(text) for text in texts):
        return "date32[day]" if all(_seconds(f"{text}T00:00", "") is not None for text in texts) else ""
    found = [TIME.fullmatch(text) for text in texts]
    matched = [each for each in found if each is not None]
    if len(matched) < len(texts) or len({each["zone"] is None for each in matched}) > 1:
        return ""
    instants = [_seconds(f"{each['minute']}{(each['second'] or '')[:3]}", each["zone"] or "") for each in matched]
    fractions = [each["fraction"] or "" for each in matched]
    is_nano = max(map(len, fractions)) > 6
    for seconds, fraction in zip(instants, fractions, strict=True):
        if seconds is None:
            return ""
        if is_nano and not -(2**63) <= seconds * 10**9 + int(fraction.ljust(9, "0")) < 2**63:
            return ""
    return f"timestamp[{'ns' if is_nano else 'us'}{', tz=UTC' if matched[0]['zone'] else ''}]"


def _seconds(text: str, zone: str) -> int | None:
    """Since 1970, or None if the calendar or the clock has none of it."""
    offset = 0
    if zone not in {"", "Z"}:
        hours, minutes = int(zone[1:3]), int(zone[3:].lstrip(":") or 0)
        if hours > 23 or minutes > 59:
            return None
        offset = (hours * 60 + minutes) * 60 * (-1 if zone[0] == "-" else 1)
    try:
        return (datetime.fromisoformat(text).replace(tzinfo=UTC) - EPOCH) // timedelta(seconds=1) - offset
    except ValueError:
        return None


def value_of(text: str, name: str, *, settled: bool = False) -> object:
    """The value of a text that is not empty in the type of a name; a time's is the number that Arrow keeps.

    Args:
        text: The text.
        name: The type's.
        settled: Zeros may lead, and a day is a time.

    Raises:
        ValueError: It has none.
    """
    plain = text.strip(" \t")
    if name == "string":
        return text
    if name == "bool":
        return {**dict.fromkeys(("true", "True", "TRUE"), True), **dict.fromkeys(("false", "False", "FALSE"), False)}[
            text
        ]
    if name == "date32[day]" and DAY.fullmatch(plain):
        return date.fromisoformat(plain)
    if name.startswith("timestamp"):
        return _ticks(f"{plain} 00:00" if settled and DAY.fullmatch(plain) else plain, name)
    number = re.sub(r"^(-?)0+(?=[0-9])", r"\1", plain) if settled else plain
    if not (DOUBLE if name == "double" else DECIMAL).fullmatch(number):
        raise ValueError(text)
    return int(number) if name.startswith("int") else float(number) if name == "double" else Decimal(number)


def _ticks(text: str, name: str) -> int:
    """Of a time, since 1970 in the unit of a type."""
    found = TIME.fullmatch(text)
    if found is None or (found["zone"] is None) is name.endswith("tz=UTC]"):
        raise ValueError(text)
    seconds = _seconds(f"{found['minute']}{(found['second'] or '')[:3]}", found["zone"] or "")
    digits, fraction = 9 if "[ns" in name else 6, found["fraction"] or ""
    if seconds is None or len(fraction) > digits:
        raise ValueError(text)
    return seconds * 10**digits + int(fraction.ljust(digits, "0"))


LINE_END = re.compile(rb"\r\n|\r|\n")
QUOTED = re.compile(rb'"((?:[^"]|"")*+)"([^,\r\n]*)')
PLAIN = re.compile(rb"[^,\r\n]*")


def records_in(data: bytes, fields: int, nulls: Collection[str]) -> tuple[list[list[str | None]], list[int]]:
    """The records of CSV with so many fields (RFC 4180), and the lines on which others begin.

    After a quote that never ends there is nothing.
    """
    rows: list[list[str | None]] = []
    bad: list[int] = []
    at, line = 0, 1
    while at < len(data):
        if ended := LINE_END.match(data, at):
            at, line = ended.end(), line + 1
            continue
        begin, record, is_odd = at, [], False
        while True:
            if data[at : at + 1] == b'"':
                quoted = QUOTED.match(data, at)
                if quoted is None:
                    return rows, [*bad, line]
                record.append(quoted[1].replace(b'""', b'"'))
                is_odd = is_odd or bool(quoted[2])
                at = quoted.end()
            else:
                plain = PLAIN.match(data, at)
                assert plain is not None
                at = plain.end()
                record.append(None if plain[0].decode(errors="replace") in nulls else plain[0])
            if data[at : at + 1] != b",":
                break
            at += 1
        if is_odd or len(record) != fields or not _is_text(data[begin:at]):
            bad.append(line)
        else:
            rows.append([None if each is None else each.decode() for each in record])
        line += len(LINE_END.findall(data[begin:at]))
    return rows, bad


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True

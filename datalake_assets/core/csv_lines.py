"""CSV that every reader reads the same, and that runs nothing in a spreadsheet."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["csv_lines", "spreadsheet_text"]

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

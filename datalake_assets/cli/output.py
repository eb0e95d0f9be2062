"""How a command's results and progress look: tables and bars on a terminal, plain lines in a pipe, and JSON.

They are written wherever output goes: in a locale without UTF-8, on a full disk, to a reader that has gone. An answer
that could not be written is an error. Work that was done is done, whether or not it could be reported.
"""

from __future__ import annotations

import datetime as dt
import errno
import io
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

import click

from datalake_assets.core.wording import (
    CONTROL_ESCAPES,
    SIZE_UNITS,
    SURROGATE_ESCAPES,
    csv_lines,
    plain,
    size_text,
    spreadsheet_text,
)

if TYPE_CHECKING:
    from rich.console import JustifyMethod
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

__all__ = [
    "AdoptProgress",
    "CompactProgress",
    "ExportProgress",
    "Streams",
    "as_csv",
    "as_table",
    "confirmed",
    "one_line",
    "print_json",
    "say",
    "terminal_width",
    "warn",
    "work",
]

_STDIN, _STDOUT, _STDERR = range(3)


class _Sink(io.RawIOBase):
    """A descriptor that never fails for what cannot be written.

    Attributes:
        lost: Why something could not be written; None if everything was.
    """

    def __init__(self, number: int, *, may_break: bool) -> None:
        self._number, self._may_break = number, may_break
        self.lost: OSError | None = None

    def write(self, data: bytes | memoryview, /) -> int:  # type: ignore[override]  # what buffers hand on
        """Writes some; pretends to, once it cannot."""
        try:
            return os.write(self._number, data) if self.lost is None else len(data)
        except OSError as error:
            if error.errno == errno.EPIPE and self._may_break and not _works:
                raise  # nobody reads the answer any more: it is not worth working out
            self.lost = error
            return len(data)

    def writable(self) -> bool:
        """Always."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._number

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._number)


class Streams:
    """Standard input and output of this process, made fit; for the life of the process."""

    def __init__(self) -> None:
        _open_missing()
        self._answer, self._remarks = _Sink(_STDOUT, may_break=True), _Sink(_STDERR, may_break=False)
        sys.stdout = _text(self._answer, sys.stdout)
        sys.stderr = _text(self._remarks, sys.stderr)
        if sys.stdin is None:
            sys.stdin = open(_STDIN, encoding="utf-8", closefd=False)  # noqa: SIM115  a descriptor, for good

    def close(self, status: int) -> int:
        """Writes what is held.

        Args:
            status: The command's exit code.

        Returns:
            The exit code, given what could be written: 1 where an answer was all that was asked for, and is lost.
        """
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # the reader had enough
            return status
        lost = self._answer.lost
        if lost is None or lost.errno == errno.EPIPE:
            return status
        if status == 0 and not _works:
            print(f"Error: the answer could not be written: {lost.strerror}", file=sys.stderr)  # noqa: T201  for people
            return 1
        print(f"what was done could not be reported: {lost.strerror}", file=sys.stderr)  # noqa: T201  for people
        return status


#: Whether the command changes something: what it did is then done, whether or not it can be reported.
_works: list[bool] = []


@contextmanager
def work() -> Iterator[None]:
    """While a command changes something; its exit code says whether that was done, and nothing else."""
    _works.append(True)
    yield


def _open_missing() -> None:
    """Opens closed descriptors on nothing: else the next file would get one, and remarks be written into it."""
    for number in (_STDIN, _STDOUT, _STDERR):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _text(sink: _Sink, before: TextIO | None) -> TextIO:
    encoding = before.encoding if before is not None else "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(sink),  # type: ignore[type-var]  # what typeshed wants of raw streams is more than is used
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=sink.isatty() or sink.fileno() == _STDERR,
    )


_CONTROL = CONTROL_ESCAPES | SURROGATE_ESCAPES


#: Blanks between the columns of a table.
_GAP = 2
#: Characters of the narrowest column that a text is folded into.
_LEAST_TEXT = 12


def confirmed(question: str) -> bool:
    """Whether a person says yes.

    Raises:
        UsageError: Nobody is there to answer.
    """
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        if sys.stdin.isatty():  # Ctrl-C, or Ctrl-D
            raise
        click.echo(err=True)
        raise click.UsageError("nobody is there to answer; give --yes") from None


def say(line: str = "") -> None:
    """Prints a line of a result, or several."""
    click.echo(line.translate(SURROGATE_ESCAPES))


def warn(line: str) -> None:
    """Prints a line beside the result, on stderr."""
    click.echo(one_line(line), err=True)


def one_line(text: str) -> str:
    """The text on one line, with nothing that would move a terminal's cursor."""
    return " ".join(part.strip() for part in text.splitlines() if part.strip()).translate(_CONTROL)


def print_json(document: Any) -> None:
    """Prints one JSON document; values as `plain` makes them."""
    is_unicode = "utf" in (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    click.echo(json.dumps(plain(document), indent=2, ensure_ascii=not is_unicode))


def terminal_width() -> int | None:
    """Columns of the terminal that results go to; None if they go elsewhere, or nobody knows."""
    return (shutil.get_terminal_size(fallback=(0, 0)).columns or None) if sys.stdout.isatty() else None


def as_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, width: int | None = None) -> str:
    """Aligned columns with a rule below the head; numbers to the right, control characters escaped.

    Args:
        columns: Their names.
        rows: A value per column; None is empty.
        width: Of the terminal: texts that are too long for it are folded, numbers never. None, or where even folded
            texts would not fit: as wide as it gets, a line per row.
    """
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
    least = [each if to_right else min(each, _LEAST_TEXT) for each, to_right in zip(widths, right, strict=True)]
    if width is not None and sum(least) + _GAP * (len(least) - 1) <= width:
        return _folded(head, texts, least, right, width=width)

    def line(cells: Sequence[str]) -> str:
        padded = (
            " " * (width - cell_len(cell)) + cell if to_right else cell + " " * (width - cell_len(cell))
            for cell, width, to_right in zip(cells, widths, right, strict=True)
        )
        return (" " * _GAP).join(padded).rstrip()

    rule = (" " * _GAP).join("─" * width for width in widths)
    return "\n".join([line(head), rule, *(line(cells) for cells in texts)])


def _folded(
    head: Sequence[str],
    texts: Sequence[Sequence[str]],
    least: Sequence[int],
    right: Sequence[bool],
    *,
    width: int,
) -> str:
    """The table within a terminal's width; one that needs no folding looks as it does elsewhere."""
    from rich.console import Console, Group  # noqa: PLC0415  only on a terminal
    from rich.rule import Rule  # noqa: PLC0415  only on a terminal
    from rich.table import Table  # noqa: PLC0415  only on a terminal
    from rich.text import Text  # noqa: PLC0415  only on a terminal

    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
    for name, narrowest, to_right in zip(head, least, right, strict=True):
        justify: JustifyMethod = "right" if to_right else "left"
        title = Group(Text(name, justify=justify), Rule(style=""))
        table.add_column(title, justify=justify, overflow="fold", no_wrap=to_right, min_width=narrowest)
    for cells in texts:
        table.add_row(*map(Text, cells))
    lines = io.StringIO()
    Console(file=lines, width=width, color_system=None, legacy_windows=False).print(table)
    return "\n".join(line.rstrip() for line in lines.getvalue().splitlines())


def as_csv(rows: Iterable[Sequence[Any]], *, raw: bool = False) -> str:
    """CSV; NULL is an empty field, nested values are JSON.

    Args:
        rows: The rows; the first one may be the head.
        raw: Leave text as it is, even what a spreadsheet would take for a formula.
    """
    return csv_lines([_field(value, raw=raw) for value in row] for row in rows)


def _is_number(value: Any) -> bool:
    if isinstance(value, str):  # counts with separators, sizes and the like, as `size_text` and f"{n:,}" make them
        number, _, unit = value.partition(" ")
        return number.lstrip("+-").replace(",", "").replace(".", "").isdecimal() and unit in {"", *SIZE_UNITS}
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


def _field(value: Any, *, raw: bool) -> Any:
    if isinstance(value, str):
        return value if raw else spreadsheet_text(value)
    if isinstance(value, (Mapping, list, tuple)):
        return json.dumps(plain(value), ensure_ascii=False)
    return plain(value)


class _CommandProgress:
    """Bars by name on stderr while the context is open, if that is a terminal.

    Args:
        quiet: Tell nothing.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bars: Bars | None = None
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            self._bars = _bars()
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def _show(self, name: str, state: str, *, done: float | None = None, total: float | None = None) -> None:
        """Makes, or changes, the bar of this name; without a total it pulses."""
        if self._bars is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self._bars.add_task(name, total=total, state=state)
        self._bars.update(self._tasks[name], completed=done, total=total, state=state)


class ExportProgress(_CommandProgress):
    """Tells how far each feed's export is."""

    def begin(self, feed: str) -> None:
        """A feed's export begins."""
        self._show(feed, "reading")

    def advance(self, feed: str, *, rows: int) -> None:
        """So many rows of a feed have been written so far."""
        self._show(feed, f"{rows:,} rows read")

    def finish(self, feed: str, *, rows: int, seconds: float, failed: bool) -> None:
        """A feed's export has ended; ``rows`` is what it added."""
        if self._bars is not None:
            self._show(feed, "failed" if failed else f"{rows:+,} rows", done=1, total=1)
        elif not self._quiet and not failed:
            say(f"{feed}: {rows:+,} rows in {seconds:.1f} s")


class AdoptProgress(_CommandProgress):
    """Tells how far the first look at a folder is."""

    def advance(self, read: int, total: int) -> None:
        """So many footers have been read, of so many."""
        self._show("footers", f"{read:,} of {total:,}", done=read, total=total)


class CompactProgress(_CommandProgress):
    """Tells how far the compaction of a feed is, by bytes, and what became of each partition.

    Args:
        feed: The feed.
        partitions: How many there are to do.
        quiet: Tell nothing.
    """

    def __init__(self, feed: str, *, partitions: int, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._feed, self._partitions, self._number = feed, partitions, 0
        self._lines: list[str] = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for line in self._lines:
            say(line)

    def begin(self) -> None:
        """The next partition begins."""
        self._number += 1
        self._show(self._feed, self._place, done=0)

    def advance(self, key: str, *, bytes_done: int, bytes_planned: int) -> None:
        """So many of the bytes planned for a partition have been rewritten."""
        state = f"{key}: {size_text(bytes_done)} of {size_text(bytes_planned)}, {self._place}"
        self._show(self._feed, state, done=bytes_done, total=bytes_planned)

    def tell(self, line: str) -> None:
        """Prints what became of a partition: at once, or, where a bar would be in the way, when that has gone."""
        if self._bars is not None:
            self._lines.append(line)
        elif not self._quiet:
            say(line)

    @property
    def _place(self) -> str:
        return f"partition {self._number:,} of {self._partitions:,}"


def _bars() -> Bars:
    from rich.console import Console  # noqa: PLC0415  only on a terminal
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415  only on a terminal

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[state]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )

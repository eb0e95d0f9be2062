"""``datalake sql``: questions to the lake. Answers are written as they are made, in every format."""

from __future__ import annotations

import io
import json
import select
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from errno import EPIPE
from itertools import chain
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import click

from datalake_assets.cli.output import as_csv, as_table, say, terminal_width, warn
from datalake_assets.cli.session import LakeCommand, Session, json_option, pass_session
from datalake_assets.core.wording import plain
from datalake_assets.errors import ConfigError, DatalakeError

if TYPE_CHECKING:
    import pyarrow as pa

    from datalake_assets.lake.sql_session import SqlAnswer

    Row = tuple[Any, ...]
    Rows = Iterator[list[Row]]

__all__ = ["sql"]

#: More rows than anybody reads on a terminal.
_ROWS_SHOWN = 100
#: Rows whose widths decide how wide a table's columns are: a longer answer is several tables.
_TABLE_ROWS = 1000
#: Rows of a row group of a Parquet answer: as many as DuckDB gives its own.
_GROUP_ROWS = 122_880
#: Bytes from which on such a row group is written, however few its rows.
_GROUP_BYTES = 64 << 20
#: Milliseconds between two checks whether the reader of the output has gone.
_LOOK_MS = 100
_BINARY = ("parquet", "arrow")
#: Types that have no like in Arrow, or in Parquet: what is written for them would be something else.
_NO_ARROW = ("TIME WITH TIME ZONE", "BIT", "BIGNUM", "VARIANT")


@click.command(cls=LakeCommand)
@click.argument("query", metavar="QUERY")
@click.option(
    "--format",
    "output",
    type=click.Choice(["table", "csv", "json", "jsonl", *_BINARY]),
    default="table",
    show_default=True,
    help="Output; arrow is an IPC stream.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    help=f"Rows to print at the most; 0 for all.  [default: {_ROWS_SHOWN} in a table, else all]",
)
@click.option("--raw", is_flag=True, help="CSV: leave text that a spreadsheet takes for a formula without a quote.")
@json_option
@pass_session
def sql(session: Session, *, query: str, output: str, limit: int | None, raw: bool, as_json: bool) -> None:
    """Answer a SELECT over the feeds, by DuckDB, exactly as committed.

    Streams have the columns year, month, day (hour) of their partitions; tables are read at their current version.
    A query reads the feeds and nothing else: no files, no network. live.NAME are the last rows of a feed that a live
    view on this machine shows, committed or not ('datalake live').

    \b
    datalake sql "select year, month, day, count(*) as records from transaction_stream group by all order by all"
    datalake sql --format parquet "select * from merchant_summary" > merchants.parquet
    """  # noqa: D301  click reads the \b: keep these lines
    from datalake_assets.lake import sql_session  # noqa: PLC0415  DuckDB and pyarrow are not needed for --help

    output = "json" if as_json else output
    most = limit if limit is not None else (_ROWS_SHOWN if output == "table" else 0)
    feeds = session.feeds()[0]

    def live(names: Collection[str]) -> Mapping[str, pa.Table]:
        from datalake_assets.live.servers import live_rows  # noqa: PLC0415  most queries are not of the present

        return live_rows(session.store.uri, names)

    with _Reader() as reader, sql_session.memory_errors_named():
        if output in _BINARY:
            _refuse_terminal(output)
            with sql_session.open_arrow_answer(
                session.store, feeds, query, on_begin=reader.watch, on_left_out=warn, live=live
            ) as arrow:
                _write_arrow(arrow, output, most or None)
            return
        with sql_session.open_answer(
            session.store, feeds, query, on_begin=reader.watch, on_left_out=warn, live=live
        ) as answer:
            rows = _Limited(answer.batches, most or None)
            _write_text(answer.columns, rows, output, raw=raw)
            if rows.truncated:
                warn(f"the first {most} rows; --limit 0 prints all")


def _refuse_terminal(output: str) -> None:
    if sys.stdout.isatty():
        raise click.UsageError(f"--format {output} is not for terminals: send it to a file, with '> FILE'")


class _Reader:
    """Who reads the output, if that is a pipe: a query ends when he has gone, even if it has nothing to write yet."""

    def __init__(self) -> None:
        self._gone, self._done = threading.Event(), threading.Event()
        self._watcher: threading.Thread | None = None
        self._interrupt: Callable[[], None] | None = None

    def __enter__(self) -> Self:
        with suppress(OSError, ValueError):  # no file
            poll = select.poll()
            poll.register(sys.stdout.fileno(), 0)  # a pipe whose reader has gone is in error
            self._watcher = threading.Thread(target=self._look, args=(poll,), name="reader of the output", daemon=True)
            self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._done.set()
        if self._watcher is not None:
            self._watcher.join()
        if self._gone.is_set() and isinstance(error, DatalakeError):
            raise BrokenPipeError(EPIPE, "the reader of the output has gone") from error

    def watch(self, interrupt: Callable[[], None]) -> None:
        """Takes how a query ends that has begun."""
        self._interrupt = interrupt

    def _look(self, poll: select.poll) -> None:
        while not self._done.wait(0 if not self._gone.is_set() else _LOOK_MS / 1000):
            if poll.poll(_LOOK_MS):
                self._gone.set()
                if self._interrupt is not None:
                    self._interrupt()  # again and again: one that comes before the query runs is forgotten


class _Limited:
    """Batches of rows, up to a number of rows.

    Attributes:
        truncated: Whether there were more; known at the end.
    """

    def __init__(self, batches: Rows, most: int | None) -> None:
        self._batches, self._most, self.truncated = batches, most, False

    def __iter__(self) -> Rows:
        left = self._most
        for batch in self._batches:
            if left is None:
                yield batch
                continue
            self.truncated = len(batch) > left
            yield batch[:left]
            left -= len(batch[:left])
            if self.truncated:
                return


def _write_text(columns: Sequence[str], batches: _Limited, output: str, *, raw: bool) -> None:
    if output == "table":
        _write_tables(columns, iter(batches))
    elif output == "csv":
        for batch in chain([[tuple(columns)]], batches):
            click.echo(as_csv(batch, raw=raw), nl=False)
    else:
        _write_json(_distinct(columns), iter(batches), lines=output == "jsonl")


def _write_tables(columns: Sequence[str], batches: Rows) -> None:
    """One table, or several where one would have to wait for its last row to know how wide it is."""
    waiting: list[Row] = []
    tables, width = 0, terminal_width()
    for batch in batches:
        waiting += batch
        while len(waiting) > _TABLE_ROWS:
            say(as_table(columns, waiting[:_TABLE_ROWS], width=width))
            waiting = waiting[_TABLE_ROWS:]
            tables += 1
    if waiting or not tables:
        say(as_table(columns, waiting, width=width))
    if tables:
        warn(f"columns are aligned for {_TABLE_ROWS:,} rows at a time; --format csv has one head")


def _write_json(columns: Sequence[str], batches: Rows, *, lines: bool) -> None:
    """A document that is whole only if the answer was; or a document a line."""
    indent, begin = (None, "") if lines else (2, "[\n")
    for batch in batches:
        texts = [
            json.dumps(plain(dict(zip(columns, row, strict=True))), indent=indent, ensure_ascii=False) for row in batch
        ]
        if lines:
            click.echo("".join(f"{text}\n" for text in texts), nl=False)
        elif texts:
            click.echo(begin + ",\n".join("  " + text.replace("\n", "\n  ") for text in texts), nl=False)
            begin = ",\n"
    if not lines:
        click.echo("[]" if begin == "[\n" else "\n]")


def _distinct(columns: Sequence[str]) -> list[str]:
    """The names, with a number behind those that were there before: where rows have names, none replaces another."""
    names: list[str] = []
    for name in columns:
        unique, number = name, 0
        while unique in names or (number and unique in columns):
            number += 1
            unique = f"{name}_{number}"
        names.append(unique)
    return names


def _write_arrow(answer: SqlAnswer[pa.RecordBatch], output: str, most: int | None) -> None:
    import pyarrow as pa  # noqa: PLC0415  not needed for --help
    from pyarrow import ipc  # noqa: PLC0415  not needed for --help

    assert answer.schema is not None  # noqa: S101  for mypy: this answer is in Arrow
    _check_types(answer, output)
    names = _distinct(answer.columns)
    schema = pa.schema([field.with_name(name) for name, field in zip(names, answer.schema, strict=True)])
    with _Sink(sys.stdout.buffer) as sink:
        heads = _head(answer.batches, most)
        batches = (pa.RecordBatch.from_arrays(each.columns, schema=schema) for each in heads)
        if output == "parquet":
            _write_parquet(sink, schema, batches)
            return
        writer = ipc.new_stream(sink, schema)
        for batch in batches:
            writer.write_batch(batch)
        writer.close()


def _write_parquet(sink: _Sink, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    import pyarrow as pa  # noqa: PLC0415  not needed for --help
    import pyarrow.parquet as pq  # noqa: PLC0415  not needed for --help

    writer = pq.ParquetWriter(sink, schema, compression="zstd")
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(batch)
        rows, size = sum(each.num_rows for each in waiting), sum(each.nbytes for each in waiting)
        if rows >= _GROUP_ROWS or size >= _GROUP_BYTES:
            writer.write_table(pa.Table.from_batches(waiting, schema), row_group_size=_GROUP_ROWS)
            waiting = []
    if waiting:
        writer.write_table(pa.Table.from_batches(waiting, schema), row_group_size=_GROUP_ROWS)
    writer.close()


def _check_types(answer: SqlAnswer[pa.RecordBatch], output: str) -> None:
    """Refuses columns whose values would be written as something else."""
    import pyarrow as pa  # noqa: PLC0415  not needed for --help

    refused = (*_NO_ARROW, "INTERVAL") if output == "parquet" else _NO_ARROW
    for name, kind, field in zip(answer.columns, answer.types, answer.schema or (), strict=True):
        if any(each in kind for each in refused if not kind.startswith("ENUM")) or pa.types.is_union(field.type):
            raise ConfigError(f"column {name!r} is {kind}, which {output} has no type for; cast it to VARCHAR")


def _head(batches: Iterator[pa.RecordBatch], most: int | None) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch if most is None else batch.slice(0, most)
        if most is not None:
            most -= min(most, batch.num_rows)
            if not most:
                return


class _Sink(io.RawIOBase):
    """A file for Arrow's writers that gets no ending when writing failed: half an answer must not look whole."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._failed = file, False

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._failed = kind is not None
        if not self._failed:
            self._file.flush()

    def writable(self) -> bool:
        """Implements `io.IOBase`: bytes can be written to it."""
        return True

    def write(self, data: Any, /) -> int:
        """Writes bytes, unless writing has failed: writers that are thrown away still write how their file ends."""
        if not self._failed:
            self._file.write(data)
        return len(data)

"""What is asked of a feed all the time: its tiles and its rules of the window, and its tiles of the lake beside it.

Every query goes through the gate, in a process of its own that has only so much memory and time
(`datalake_assets.lake.sql_process`): whatever a feed declares, the process that lands rows is not harmed. All queries
of a feed share one process, which is given the window in memory that both share; where that process ends by one of
them, each is asked by itself, and one that took too much rests for a while.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import pyarrow as pa

from datalake_assets.core.partitions import PartitionBy, TimeWindow, keys_in, partition_columns
from datalake_assets.core.rules import (
    DATA,
    RuleCount,
    broken_condition,
    counting_query,
    is_row_rule,
    literal,
    repeats_query,
)
from datalake_assets.core.schema import schema_to_json
from datalake_assets.errors import DatalakeError
from datalake_assets.feed import Feed
from datalake_assets.lake.sql_jobs import SqlFailed, SqlJob, SqlRows, TableJob
from datalake_assets.lake.sql_process import SqlProcesses
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.tables import open_table
from datalake_assets.live_policies import Tile
from datalake_assets.policies import Rule, SqlRule, UniqueRule

__all__ = ["FeedQuestions", "Reply", "history_of", "shared_memory", "tile_rows"]

#: Rows of a tile's answer by its kind, and bytes of any.
ROWS = {"number": 1, "series": 240, "table": 20}
ANSWER_BYTES = 128 << 10
#: Rows that are shown of those that break rules.
BROKEN_ROWS = 8
#: Seconds that a question to the window may take, and one to the lake.
WINDOW_S, LAKE_S = 1.0, 15.0
#: Seconds for which a question rests that took too much.
_REST_S = 30.0
#: Failures that are the question's own fault, by what it takes.
_DEAR = frozenset({"late", "large"})


@dataclass(frozen=True, slots=True)
class Reply:
    """What a question got.

    Attributes:
        columns: Names of the answer's columns; none where it failed.
        rows: Values as JSON has them.
        truncated: Whether there are more rows.
        problem: Why it failed; empty if it did not.
        at: When it was asked, in seconds since 1970.
    """

    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()
    truncated: bool = False
    problem: str = ""
    at: float = 0.0

    @classmethod
    def of(cls, found: SqlRows | SqlFailed, at: float) -> Reply:
        """What a process said."""
        if isinstance(found, SqlFailed):
            return cls(problem=found.reason, at=at)
        return cls(tuple(found.columns), tuple(map(tuple, found.rows)), found.truncated, at=at)


def tile_rows(tile: Tile) -> int:
    """Rows of a tile's answer that are asked for."""
    return ROWS[tile.kind]


@dataclass(slots=True)
class _Question:
    """A query, and what it got last."""

    query: str
    is_counted: bool = False
    reply: Reply = field(default_factory=Reply)
    rests_until: float = 0.0


class FeedQuestions:
    """The questions to a feed's window; used by one thread at a time.

    Args:
        feed: The feed.
        processes: Run queries.
    """

    def __init__(self, feed: Feed, processes: SqlProcesses) -> None:
        self.feed, self._processes = feed, processes
        rules = feed.checks.rules
        self._row_rules = [rule for rule in rules if is_row_rule(rule)]
        self._others = [rule for rule in rules if isinstance(rule, UniqueRule | SqlRule)]
        self._counts = _Question(counting_query(self._row_rules))
        self._examples = [_Question(_examples(self._row_rules))] if self._row_rules else []
        self._compared = [
            _Question(rule.query, is_counted=True) if isinstance(rule, SqlRule) else _Question(repeats_query(rule))
            for rule in self._others
        ]
        self._tiles = [_Question(tile.sql) for tile in feed.tiles]
        #: Of when the answers are, in seconds since 1970; None before the first.
        self.asked_at: float | None = None

    def ask(self, rows: pa.Table | None, now: float) -> None:
        """Asks all questions of the window's rows; without rows no rule is broken, and tiles have nothing to show."""
        wanted = [self._counts, *self._examples, *self._compared, *self._tiles]
        if not self._row_rules and not self._others:
            wanted = self._tiles
        if rows is None or not wanted:
            for each in wanted:
                each.reply = Reply(at=now)
            self.asked_at = now
            return
        moment = time.monotonic()
        due = [each for each in wanted if each.rests_until <= moment]
        with shared_memory(rows) as memory:
            for question, found in zip(due, self._asked(due, memory), strict=True):
                question.reply = Reply.of(found, now)
                if isinstance(found, SqlFailed) and found.kind in _DEAR:
                    question.rests_until = moment + _REST_S
        self.asked_at = now

    def failed(self, problem: str, now: float) -> None:
        """No question has an answer just now."""
        for each in (self._counts, *self._examples, *self._compared, *self._tiles):
            each.reply = Reply(problem=problem, at=now)
        self.asked_at = now

    def _asked(self, due: Sequence[_Question], memory: int) -> list[SqlRows | SqlFailed]:
        if not due:
            return []
        queries = [each.query for each in due]
        counted = [place for place, each in enumerate(due) if each.is_counted]
        most = max(ROWS.values())
        job = TableJob(queries, DATA, max_rows=most, max_bytes=ANSWER_BYTES, each_s=WINDOW_S, counted=counted)
        try:
            return self._processes.answers(job, memory)
        except SqlFailed as error:
            if len(due) == 1:
                return [error]
        return [found for each in due for found in self._asked([each], memory)]

    @property
    def tiles(self) -> list[tuple[Tile, Reply]]:
        """The feed's tiles, and what each shows of the window."""
        return [(tile, _cut(tile, question.reply)) for tile, question in zip(self.feed.tiles, self._tiles, strict=True)]

    @property
    def rules(self) -> list[tuple[Rule, RuleCount | str]]:
        """The feed's rules: rows of the window that were looked at, and that break each; or why nobody knows."""
        found: list[tuple[Rule, RuleCount | str]] = []
        counts = self._counts.reply
        numbers = counts.rows[0] if counts.rows else (0,) * (1 + len(self._row_rules))
        for rule, broken in zip(self._row_rules, numbers[1:], strict=True):
            found.append((rule, counts.problem or RuleCount("", int(numbers[0]), int(broken))))
        for rule, question in zip(self._others, self._compared, strict=True):
            reply = question.reply
            broken = int(reply.rows[0][0]) if reply.rows else 0
            found.append((rule, reply.problem or RuleCount("", int(numbers[0]), broken)))
        return found

    @property
    def broken_rows(self) -> Reply:
        """The newest rows that break rules on single rows; the first column names the rules."""
        return self._examples[0].reply if self._examples else Reply()


def _cut(tile: Tile, reply: Reply) -> Reply:
    most = tile_rows(tile)
    if len(reply.rows) <= most:
        return reply
    return Reply(reply.columns, reply.rows[:most], truncated=True, at=reply.at)


def _examples(rules: Sequence[Rule]) -> str:
    named = [f"CASE WHEN {broken_condition(rule)} THEN {literal(rule.check_name)} END" for rule in rules]
    any_broken = " OR ".join(f"({broken_condition(rule)})" for rule in rules)
    return (
        f"SELECT concat_ws(', ', {', '.join(named)}) AS breaks, *"  # noqa: S608  all are quoted
        f" FROM {DATA} WHERE {any_broken} ORDER BY {DATA}._seen_at DESC LIMIT {BROKEN_ROWS}"
    )


@contextmanager
def shared_memory(rows: pa.Table) -> Iterator[int]:
    """Memory with the rows in it as an Arrow IPC file, by its descriptor; where there is none such, a nameless file."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("datalake-live", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as nameless:
            descriptor = os.dup(nameless.fileno())
    try:
        file = pa.PythonFile(os.fdopen(os.dup(descriptor), "wb"), mode="w")
        with file, pa.ipc.new_file(file, rows.schema) as writer:
            writer.write_table(rows)
        yield descriptor
    finally:
        os.close(descriptor)


def history_of(
    store: Store,
    feed: Feed,
    tile: Tile,
    processes: SqlProcesses,
    *,
    now: datetime,
    stopped: threading.Event,
    clock: Callable[[], float] = time.time,
) -> Reply:
    """What a tile shows of the lake: of the whole partitions from its ``history`` ago until now.

    Args:
        store: The lake.
        feed: The feed.
        tile: One of its tiles.
        processes: Run queries.
        now: The time.
        stopped: Set when nobody wants the answer any more.
        clock: Seconds since 1970.
    """
    at = clock()
    start = max(now - tile.history, feed.start_time)
    keys = tuple(keys_in(TimeWindow(start, max(now, start)), PartitionBy(feed.partition_by)))
    try:
        for _ in range(_ATTEMPTS):
            job, open_file = _lake_job(store, feed, tile, keys)
            if stopped.is_set():
                break
            if job is None:
                return Reply(at=at)
            try:
                return Reply.of(processes.answer(job, open_file), at)
            except SqlFailed as error:
                if error.kind != "expired":  # what is gone was compacted: the table names other files
                    return Reply.of(error, at)
    except DatalakeError as error:
        return Reply(problem=" ".join(str(error).split()), at=at)
    return Reply(problem="its files were replaced each time it was asked", at=at)


_ATTEMPTS = 3


def _lake_job(
    store: Store, feed: Feed, tile: Tile, keys: Sequence[str]
) -> tuple[SqlJob | None, Callable[[str], Any] | None]:
    dataset = open_table(store, feed).snapshot(keys).dataset()
    files: Sequence[str] = dataset.files if dataset.schema.names else ()
    if not files:
        return None, None
    added = set(partition_columns(feed))
    schema = pa.schema([each for each in dataset.schema if each.name not in added])
    filesystem = dataset.filesystem
    is_local = filesystem is None or isinstance(filesystem, pa.fs.LocalFileSystem)
    sizes = () if is_local else tuple(each.size for each in filesystem.get_file_info(list(files)))
    job = SqlJob(
        query=tile.sql,
        table=DATA,
        schema=schema_to_json(schema),
        files=list(files),
        max_rows=tile_rows(tile),
        max_bytes=ANSWER_BYTES,
        timeout_s=LAKE_S,
        sizes=sizes,
    )
    return job, None if is_local else filesystem.open_input_file

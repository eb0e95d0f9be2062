"""Rounds of a feed that is merged: changes come shuffled and in batches, exports are killed, a dictionary counts.

The changes are written down once, in the order in which their source numbers them. An export reads from where the lake
says that it goes on to the end of its batch, so that one that follows a killed export has other bounds. What stands in
the end is worked out from the versions alone, by a dictionary that shares nothing with the product.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog

from datalake_assets.core.batches import InMemoryBatches, SourceBatch
from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.lake.store.s3 import S3Store
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets.lake.table import LakeTable
from datalake_assets.lake.tables import open_table
from datalake_assets_tests.crash.checks import CrashError
from datalake_assets_tests.crash.child import Forker

__all__ = ["OPERATIONS", "MergeRounds", "Sizes", "die_at", "merge"]

KILLED = -signal.SIGKILL
FORMS = ("parquet", "iceberg")
START = datetime(2025, 1, 1, tzinfo=UTC)
DAYS = 4
#: A change comes up to so many batches late or early; and so many percent of all delete.
SHUFFLED_BATCHES, DELETED_PERCENT = 3, 15
#: Rounds between two comparisons with the dictionary.
LOOK_EVERY = 10
#: What changes the lake, or the catalog.
OPERATIONS: tuple[tuple[type, str], ...] = (
    *(
        (store, name)
        for store in (LocalStore, S3Store)
        for name in ("create", "swap", "put", "publish", "delete", "stage")
    ),
    (SqlCatalog, "commit_table"),
)
#: Files of a partition: those that the last batches left, since each one writes anew what it touches.
MOST_FILES = 8
#: Rows that a batch of the source has.
BATCH_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is merged.

    Attributes:
        changes: In all.
        keys: Distinct ones.
        batches: Exports that it comes in.
        kills: Exports that are killed at the least, of each table format.
    """

    changes: int = 10_000
    keys: int = 1_000
    batches: int = 20
    kills: int = 10


def feed_of(form: str) -> Feed:
    """A stream by day that is merged by two columns, the greatest version being the newest."""
    return parse_feed(
        f'{{"name": "merged", "kind": "stream", "source": {{"type": "ksqldb", "object": "M"}}, "start": "2025-01-01",'
        f' "format": {{"type": "{form}"}}, "write": "merge", "key": ["id", "region"],'
        f' "merge": {{"order_by": "version", "delete_column": "op"}}}}'
    )


def write_changes(sizes: Sizes, path: str, *, seed: int) -> None:
    """Writes all changes, in their source's order."""
    rng = np.random.default_rng(seed)
    count, per_batch = sizes.changes, -(-sizes.changes // sizes.batches)
    versions = np.argsort(np.arange(count) + rng.uniform(0, SHUFFLED_BATCHES * per_batch, count), kind="stable")
    ids = rng.integers(0, sizes.keys, count)
    deletes = rng.integers(0, 100, count) < DELETED_PERCENT
    seconds = rng.integers(0, DAYS * 86_400, count)
    columns = {
        "id": pa.array(ids),
        "region": pa.array([f"r{number % 7}" for number in ids.tolist()]),
        "version": pa.array(versions),
        "note": pa.array([f"n{number}" for number in versions.tolist()]),
        "op": pa.array(np.where(deletes, "d", "u")),
        "rowtime": pa.array(int(START.timestamp()) + seconds, pa.int64())
        .cast(pa.timestamp("s", "UTC"))
        .cast(pa.timestamp("us", "UTC")),
    }
    pq.write_table(pa.table(columns), path, row_group_size=1 << 16)


def merge(
    *, lake: str, endpoint: str | None, form: str, changes: str, end: int, number: int, moment: str, log: str
) -> None:
    """One export of the changes up to ``end``; dies before or after its ``number``-th operation, 0 for never."""
    die_at(number, moment, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND))
    table = open_table(open_store(lake, s3=S3Access(endpoint=endpoint)), feed_of(form))
    plan = table.plan()
    first = (plan.request.start_offsets or {}).get(0, 0)
    rows = pq.read_table(changes).slice(first, max(0, end - first)).combine_chunks()
    offsets = np.arange(first, first + rows.num_rows, dtype=np.int64)
    batches = [
        SourceBatch(part, pa.array(np.zeros(part.num_rows, np.int32)), pa.array(at))
        for start in range(0, rows.num_rows, BATCH_ROWS)
        for part in rows.slice(start, BATCH_ROWS).combine_chunks().to_batches()
        for at in [offsets[start : start + BATCH_ROWS]]
    ]
    if batches:
        table.write(
            InMemoryBatches(tuple(batches), "rowtime", plan.request), partitions=plan.partitions, run_id=f"to {end}"
        )


def die_at(number: int, moment: str, log: int, *, operations: Sequence[tuple[type, str]] = OPERATIONS) -> None:
    """Has this process kill itself before or after the ``number``-th operation, 0 for never.

    Args:
        number: Counted from now on.
        moment: ``before`` or ``after``.
        log: File descriptor that gets a line for each operation.
        operations: What counts.
    """
    count = 0

    def around(name: str, real: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            is_last = count == number
            os.write(log, f"{name}\n".encode())
            if is_last and moment == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*given, **named)
            if is_last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for place, name in operations:
        setattr(place, name, around(name, getattr(place, name)))


class MergeRounds:
    """Exports of batch after batch, on plain files and on Iceberg in turn.

    Args:
        lakes: Below this URI, lakes are made.
        forker: Runs the exports; it has `merge` at hand.
        endpoint: Of the S3 server.
        seed: Decides what is killed, and where.
        sizes: How much there is.

    Attributes:
        steps: What there is to be killed at.
        hits: Kills by operation.
        moments: Kills by moment.
        happened: What else there was.
    """

    steps = ("create", "swap", "publish", "delete", "stage", "commit_table")

    def __init__(
        self, lakes: str, forker: Forker, *, endpoint: str | None = None, seed: int = 0, sizes: Sizes | None = None
    ) -> None:
        self._lakes, self._forker, self._endpoint = lakes, forker, endpoint
        self._forms = FORMS if endpoint is None else FORMS[:1]  # in S3 there is no catalog beside the lake
        self._sizes, self._seed, self._rng = sizes or Sizes(), seed, random.Random(seed)
        self._folder = tempfile.TemporaryDirectory()
        self._changes = f"{self._folder.name}/changes.parquet"
        self._number = self._logs = 0
        self._operations: dict[str, list[str]] = {}
        self._killed: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()

    @property
    def rounds(self) -> int:
        """How many it takes to merge all changes into both tables."""
        return self._sizes.batches * len(self._forms)

    def close(self) -> None:
        """Forgets the changes; the lakes stay."""
        self._folder.cleanup()

    def prepare(self) -> None:
        """Writes the changes down."""
        write_changes(self._sizes, self._changes, seed=self._seed)
        for form in self._forms:
            if "://" not in self._lakes:
                Path(f"{self._lakes}/{form}").mkdir()

    def round(self) -> str:
        """One batch; returns what became of it."""
        form, batch = self._forms[self._number % len(self._forms)], self._number // len(self._forms) + 1
        self._number += 1
        end = min(self._sizes.changes, -(-self._sizes.changes * batch // self._sizes.batches))
        said = [f"{form} batch {batch}"]
        left = self._sizes.batches - batch + 1
        while self._rng.random() * left < self._sizes.kills - self._killed[form]:
            said.append(self._kill(form, end))
            if self._rng.random() < 0.5:  # not the same batch again and again
                break
        at_once = 2 if self._rng.random() < 0.1 else 1
        self.happened["two at once"] += at_once - 1
        running = [self._start(form, end, 0, "before") for _ in range(at_once)]
        codes = [self._forker.wait(child) for child, _ in running]
        if any(codes):
            raise CrashError(f"{said}: an export failed with {codes}; its traceback is above")
        self._operations[form] = running[0][1].read_text().split()
        if batch % LOOK_EVERY == 0 or batch == self._sizes.batches:
            self._look(form, end, " ".join(said))
        return ", ".join(said)

    def _kill(self, form: str, end: int) -> str:
        known = self._operations.get(form) or ["swap"] * 20
        step = min(sorted(set(known)), key=lambda each: (self.hits[each], self._rng.random()))
        number = self._rng.choice([place for place, each in enumerate(known, start=1) if each == step])
        moment: Literal["before", "after"] = self._rng.choice(("before", "after"))
        child, log = self._start(form, end, number, moment)
        code = self._forker.wait(child)
        if code == KILLED:
            last = log.read_text().split()[-1]
            self.hits[last] += 1
            self.moments[moment] += 1
            self._killed[form] += 1
            return f"killed {moment} {last}, operation {number}"
        if code:
            raise CrashError(f"{form}: an export failed with {code}; its traceback is above")
        self.happened["survived"] += 1
        return "survived"

    def _start(self, form: str, end: int, number: int, moment: str) -> tuple[int, Path]:
        self._logs += 1
        log = Path(self._folder.name) / f"log{self._logs}"
        child = self._forker.start(
            "merge",
            lake=f"{self._lakes}/{form}",
            endpoint=self._endpoint,
            form=form,
            changes=self._changes,
            end=end,
            number=number,
            moment=moment,
            log=str(log),
        )
        return child, log

    def _look(self, form: str, end: int, said: str) -> None:
        store: Store = open_store(f"{self._lakes}/{form}", s3=S3Access(endpoint=self._endpoint))
        table = open_table(store, feed_of(form))
        rows = table.scan().read_all()
        found = dict(
            zip(
                rows["id"].to_pylist(),
                zip(rows["version"].to_pylist(), rows["note"].to_pylist(), strict=True),
                strict=True,
            )
        )
        truth = self._truth(end)
        if len(found) != rows.num_rows:
            raise CrashError(f"{said}: {rows.num_rows - len(found)} keys have two rows")
        if found != truth:
            lost, more = truth.keys() - found.keys(), found.keys() - truth.keys()
            other = [key for key in truth.keys() & found.keys() if truth[key] != found[key]]
            raise CrashError(f"{said}: {len(lost)} keys are missing, {len(more)} should not be, {len(other)} are older")
        repaired = table.repair()
        self.happened += Counter(finished=repaired.finished, undone=repaired.undone)
        differences = list(table.verify())
        if differences:
            raise CrashError(f"{said}: verify finds {differences[:3]}")
        self._check_files(table, said)
        self.happened["compared"] += 1

    def _check_files(self, table: LakeTable, said: str) -> None:
        """A partition has few files: those that a merge left alone, and what the last one wrote."""
        for key in table.partitions():
            report = table.report(key)
            if report is not None and report.files > MOST_FILES:
                raise CrashError(f"{said}: {key} has {report.files} files")
            if table.compaction_plan(key, CompactionRequest()).groups:
                self.happened["partitions to compact"] += 1

    def _truth(self, end: int) -> dict[int, tuple[int, str]]:
        newest: dict[int, tuple[int, str, str]] = {}
        rows = pq.read_table(self._changes, columns=["id", "version", "note", "op"]).slice(0, end).to_pydict()
        for key, version, note, op in zip(rows["id"], rows["version"], rows["note"], rows["op"], strict=True):
            if key not in newest or version > newest[key][0]:
                newest[key] = (version, note, op)
        return {key: (version, note) for key, (version, note, op) in newest.items() if op != "d"}

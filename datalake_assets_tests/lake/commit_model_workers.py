"""What the processes of the model check do: the product's writers and compactor, in little."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from datalake_assets.core.compaction.plan import CompactionGroup, CompactionRequest
from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.position import OffsetsPosition, WindowPosition, first_seen, offset_bounds
from datalake_assets.errors import CommitConflict, ObjectNotFound
from datalake_assets.feed import parse_feed
from datalake_assets.lake import compaction
from datalake_assets.lake.commit import Change, Loaded, Planned
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.parquet.rewrite import Rewritten
from datalake_assets_tests.lake.commit_ledger import FOLDER, require, rows_in
from datalake_assets_tests.lake.simulated_store import START

if TYPE_CHECKING:
    from datalake_assets_tests.lake.commit_model import History

__all__ = ["OFFSETS_WORKERS", "READS", "WINDOW_WORKERS", "append", "check_inputs", "compact", "pull", "repair", "sweep"]

EPOCH = 1
READS = 4  # how often a worker reads anew after a conflict
#: The feed and the partition that are `FOLDER`.
ORDERS = parse_feed(
    json.dumps({"name": "orders", "kind": "stream", "source": {"type": "ksqldb", "object": "O"}, "start": "2025-01-01"})
)
FOLDER_KEY = "2025-01-15"


def check_inputs(inputs: set[str], base: Manifest) -> None:
    """What a compactor asks of each base that it is tried on."""
    if not inputs <= {file.name for file in base.files}:
        raise CommitConflict(FOLDER, "an input of the compaction is gone")


def append(history: History) -> None:
    """Lands what the source has beyond the position, and some rows that it had before."""
    for _ in range(READS):
        position = history.log().load().manifest.position or OffsetsPosition()
        rows = _read(history, position)
        partitions, offsets = np.array([row[0] for row in rows], int), np.array([row[1] for row in rows], int)
        new = first_seen({}, partitions, offsets) & position.new_rows(EPOCH, partitions, offsets)
        if not new.any():
            return
        bounds = offset_bounds(partitions[new], offsets[new])

        def plan(base: Manifest, bounds: dict[int, tuple[int, int]] = bounds) -> Planned:
            now = base.position or OffsetsPosition()
            if not now.admits(EPOCH, {partition: low for partition, (low, _) in bounds.items()}):
                raise CommitConflict(FOLDER, "another writer landed these rows")
            return Planned(now.advanced(EPOCH, {partition: high for partition, (_, high) in bounds.items()}))

        fresh = list(zip(partitions[new].tolist(), offsets[new].tolist(), strict=True))
        if history.commit(history.stage(fresh, "append", plan)):
            return
    raise CommitConflict(FOLDER, "others were always faster")


def _read(history: History, position: OffsetsPosition) -> list[tuple[int, int]]:
    """In offset order within each source partition, with repetitions, and from a little before the position."""
    rng, queues = history.rng, []
    for partition, end in history.ends.items():
        start = max(0, min(end, position.floor(partition, EPOCH)) - rng.randrange(3))
        numbers = list(range(start, end))
        if numbers and rng.random() < 0.3:
            again = rng.randrange(len(numbers))
            numbers[again:again] = numbers[max(0, again - 2) : again]
        queues.append([(partition, number) for number in numbers])
    rows = []
    while any(queues):
        queue = rng.choice([queue for queue in queues if queue])
        rows.append(queue.pop(0))
    return rows


def compact(history: History) -> None:
    """Rewrites some of the files, and commits them as the product does; often with inputs of another compactor."""
    for _ in range(READS):
        loaded = history.log().load()
        files = loaded.manifest.files
        if len(files) < 2:
            return
        inputs = tuple(history.rng.sample(files, history.rng.randrange(2, len(files) + 1)))
        rows: list[tuple[int, int]] = []
        try:
            for file in inputs:
                rows += rows_in(history.store.get(f"{FOLDER}/{file.name}")[0])
        except ObjectNotFound:
            continue
        if _commit_compaction(history, loaded, inputs, rows):
            return
        history.counts["compact conflicts"] += 1


def _commit_compaction(
    history: History, loaded: Loaded, inputs: tuple[DataFile, ...], rows: list[tuple[int, int]]
) -> bool:
    staged = history.stage(rows, "compact", lambda _base: None)
    done = Rewritten({}, staged.files, tuple(file.name for file in inputs))
    folder = FeedFolder(history.store, ORDERS, history.new_id)
    engine = compaction.Compaction(folder, FOLDER_KEY, CompactionRequest(), "", None, guard=None)
    engine._loaded = loaded  # as it was before the rewrite: often another by now
    engine._commit(compaction._Work(CompactionGroup(inputs, ""), staged.commit_id, done))
    committed = engine._tally.files_compacted > 0
    if committed:
        history._check("compact")
        require(staged.commit_id in history.ledger.commits, "said to be committed, but is not")
    return committed


def replace(history: History) -> None:
    """Lands the whole source anew, in place of all that is there."""
    rows = sorted(history.source())
    ends = {partition: end for partition, end in history.ends.items() if end}

    def plan(base: Manifest) -> Planned | None:
        now = base.position or OffsetsPosition()
        mine = OffsetsPosition().advanced(EPOCH, {partition: end - 1 for partition, end in ends.items()})
        if any(mine.next_offsets.get(partition, (0, 0)) < at for partition, at in now.next_offsets.items()):
            return None
        return Planned(mine, remove=tuple(file.name for file in base.files))

    if rows:
        history.commit(history.stage(rows, "replace", plan))


def pull(history: History) -> None:
    """Lands what a window's source has now; it may have had more or less before."""
    as_of = history.store.now()
    rows = sorted(history.source())
    if history.rng.random() < 0.2:
        rows = rows[::2]
    history.ledger.pulls[as_of] = frozenset(rows)
    position = WindowPosition(START, START, as_of, len(rows), "0" * 16)

    def plan(base: Manifest) -> Planned | None:
        if base.position is not None and base.position.as_of >= as_of:
            return None
        return Planned(position, remove=tuple(file.name for file in base.files))

    history.commit(history.stage(rows, "replace", plan))


def delete(history: History) -> None:
    """Retention: nothing is left but the manifest."""

    def plan(base: Manifest) -> Planned | None:
        return Planned(remove=tuple(file.name for file in base.files), deleted=True) if base.files else None

    history.commit(Change(history.new_id(), "delete", (), plan))


def sweep(history: History) -> None:
    """Takes staged files for leftovers, whose they may be."""
    for upload in history.store.list_staged(FOLDER):
        if history.rng.random() < 0.5:
            history.store.discard_stale(upload)


def repair(history: History) -> None:
    """Finishes or undoes what others began."""
    log = history.log()
    log.settle(log.load())


OFFSETS_WORKERS = {append: 5.0, compact: 3.0, replace: 1.0, delete: 0.4, sweep: 0.8, repair: 1.0}
WINDOW_WORKERS = {pull: 4.0, compact: 3.0, delete: 0.4, sweep: 0.8, repair: 1.0}

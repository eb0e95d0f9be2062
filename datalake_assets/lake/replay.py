"""How rows in quarantine are landed once the feed, or its source, was mended.

A replay decodes rows again under the feed as it is now, and lands those that fit. What makes it exact are the holes in
the partitions' positions: a row that a commit passed over is one, and a replay fills it in the same compare-and-swap
that brings its file. Lines are taken out of quarantine afterwards, and never on anybody's guess: what a replay is about
to land is written down before, so that a crash in between leaves lines that the next replay can take out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from datalake_assets.core.batches import Batches, Decode, ReadRequest, RejectedRow, SourceBatch
from datalake_assets.core.facts import PartitionFacts, WriteReport
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import UNKNOWN_PARTITION
from datalake_assets.core.position import (
    Holes,
    Ints,
    OffsetsPosition,
    Runs,
    SourcePartition,
    integers,
    merged_runs,
    number_arrays,
    offset_to_json,
    partition_of,
    runs_of,
    within,
)
from datalake_assets.core.row_texts import QuarantinedRow, row_from_text
from datalake_assets.core.schema import SchemaPolicy, schema_from_json
from datalake_assets.errors import CommitConflict, ConfigError, ObjectNotFound
from datalake_assets.feed_sources import PositionKind
from datalake_assets.lake.commit import Planned
from datalake_assets.lake.export_commits import Export, Staged, begun_again
from datalake_assets.lake.landing import Mask, OffsetsFence
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.quarantined_rows import Quarantine, quarantine_objects, take_out

__all__ = ["ATTEMPTS", "BATCH_ROWS", "NO_ANSWER", "Staying", "Waiting", "finish_replays", "is_decoded", "refuse_pulled"]
__all__ += ["replay"]

#: Times that a replay begins anew because somebody else landed some of its rows.
ATTEMPTS = 5
#: Rows that are decoded at once.
BATCH_ROWS = 10_000
#: After this long nobody is still at a replay that was begun: what it did not land it never will.
ABANDONED = timedelta(hours=1)

NOT_NUMBERED = "its source partition and offset are not known, so that it could be landed twice"
OTHER_EPOCH = "it is from before its topic was created anew"
NOT_PASSED = "no export has passed it yet: the next one reads it again"
THERE = "it is in the lake already, or was passed over by an earlier release"
NO_ANSWER = "its source cannot decode rows again"


def replay(folder: FeedFolder, batches: Batches, decode: Decode | None, *, run_id: str = "") -> WriteReport:
    """Does what `TableWriter.replay` promises, for the feed of a folder."""
    refuse_pulled(folder)
    folder.store.probe()

    def begin() -> ReplayExport:
        finish_replays(folder)
        waiting = Waiting(folder, batches, decode)
        return ReplayExport(folder, waiting, (), run_id, allow_shrink=False, on_progress=None)

    export, report = begun_again(begin, attempts=ATTEMPTS)
    if report.partitions:
        folder.summary.merge(report.partitions, removed=(), at=folder.store.now())
    return dataclasses.replace(report, stayed=dict(export.stayed))


def refuse_pulled(folder: FeedFolder) -> None:
    """Does what `TableWriter.check_replay` promises."""
    feed = folder.feed
    if not feed.is_exported:
        raise ConfigError(f"feed {feed.name!r} is {feed.written_by}: whoever writes it has to write those rows again")
    if feed.write == "merge":
        raise ConfigError(
            f"feed {feed.name!r} merges changes by key, and newer ones of these keys may have been merged since:"
            " have the source send the rows again"
        )
    if feed.shares_numbers:
        raise ConfigError(
            f"feed {feed.name!r} is read on by values that rows may share, so that nobody knows which of them were"
            f" landed: show them with 'datalake quarantine show {feed.name}', and have the source give them a new value"
        )
    if feed.position_kind not in {PositionKind.OFFSETS, PositionKind.IDS}:
        again = f"--table {feed.name}" if feed.kind == "table" else f"--stream {feed.name} --range A..B"
        raise ConfigError(
            f"feed {feed.name!r} is pulled whole, each time with the rows that did not fit before:"
            f" once it is mended, 'datalake export {again}' lands them"
        )


class Waiting:
    """A feed's quarantine as batches: distinct rows with source partition and offset, decoded under the feed as it is.

    Attributes:
        epoch: The source's epoch now.
        stayed: Number of rows that cannot be decoded again or have no offset, by the reason.
        offsets: All numbered rows of the epoch, by source partition.
    """

    recreated = False
    unfinished = ""

    def __init__(self, folder: FeedFolder, batches: Batches, decode: Decode | None) -> None:
        self._folder, self._batches, self._decode = folder, batches, decode
        self._state = folder.state.load()
        self.epoch = self._state.epoch
        self.stayed: Counter[str] = Counter()
        self.offsets: dict[SourcePartition, list[int]] = defaultdict(list)

    @cached_property
    def _known(self) -> pa.Schema:
        """The lake's schema, or the source's before the first commit."""
        return self._batches.schema if self._state.schema is None else schema_from_json(self._state.schema)

    @cached_property
    def schema(self) -> pa.Schema:
        """The columns that the lake knows, and new ones of an evolving feed; of rows that their source has to decode,
        the source's.
        """
        if self._decode is not None and self._has_undecoded():
            return self._batches.schema
        return self._evolved() if self._folder.feed.schema_policy == "evolve" else self._known

    def _evolved(self) -> pa.Schema:
        """With columns that rows have from a time when the feed did not take them: in the type that the source has now,
        since another one would stop the next export.
        """
        fields = {field.name: field for field in self._known}
        taken = {name.lower() for name in fields}
        for _, _, rows in self._objects():
            for columns in {row.columns for row in rows if row.columns and self._why_not(row) is None}:
                for own in _fields_of(columns):
                    if own.name.lower() in taken:
                        continue
                    source = self._batches.schema
                    new = source.field(own.name) if own.name in source.names else own
                    if self._folder.can_hold(new.type):
                        fields[own.name] = new
                        taken.add(own.name.lower())
        return pa.schema(fields.values(), metadata=self._known.metadata)

    @property
    def time_column(self) -> str | None:
        """The column that partitions the rows."""
        return self._batches.time_column

    @property
    def request(self) -> ReadRequest:
        """Nothing is asked of the source."""
        return ReadRequest()

    def acknowledge(self) -> None:
        """Does nothing."""

    def _has_undecoded(self) -> bool:
        return any(not is_decoded(row) and self._why_not(row) is None for _, _, rows in self._objects() for row in rows)

    def _objects(self) -> Iterator[tuple[str, str, list[QuarantinedRow]]]:
        return quarantine_objects(self._folder.store, self._folder.quarantine)

    def __iter__(self) -> Iterator[SourceBatch]:
        """Streams the rows, each once."""
        taken: set[str] = set()
        for _, _, rows in self._objects():
            fresh = []
            for row in rows:
                if row.identity not in taken:
                    taken.add(row.identity)
                    fresh.append(row)
            for start in range(0, len(fresh), BATCH_ROWS):
                yield from self._decoded(fresh[start : start + BATCH_ROWS])

    def _decoded(self, rows: Sequence[QuarantinedRow]) -> Iterator[SourceBatch]:
        usable = []
        for row in rows:
            why = self._why_not(row)
            if why is None and row.offset is not None:
                self.offsets[row.offset[0]].append(row.offset[1])
                usable.append(row)
            elif why is not None:
                self.stayed[why] += 1
        own: dict[str, list[QuarantinedRow]] = defaultdict(list)
        for row in usable:
            if is_decoded(row):
                own[row.columns].append(row)
        for columns, alike in own.items():
            yield self._from_text(alike, columns)
        others = [row for row in usable if not is_decoded(row)]
        if others and self._decode is not None:
            yield self._decode([row.content for row in others])
        elif others:
            self.stayed[NO_ANSWER] += len(others)

    def _why_not(self, row: QuarantinedRow) -> str | None:
        if row.offset is None:
            return NOT_NUMBERED
        # earlier releases did not write the epoch: there was none but the first
        return None if (row.epoch or 0) == self.epoch else OTHER_EPOCH

    def _from_text(self, rows: Sequence[QuarantinedRow], columns: str) -> SourceBatch:
        read, good, rejected = self.read_texts(rows, columns)
        return SourceBatch(read, *number_arrays([row.offset for row in good if row.offset]), tuple(rejected))

    def read_texts(
        self, rows: Sequence[QuarantinedRow], columns: str
    ) -> tuple[pa.RecordBatch, list[QuarantinedRow], list[RejectedRow]]:
        """Decoded rows in their own columns: the lake's, but for those that they say; their lines, and the others."""
        schema = self._own_schema(columns)
        good, read = list(rows), None
        rejected: list[RejectedRow] = []
        with contextlib.suppress(ValueError, pa.ArrowException):
            read = _read(good, schema)
        if read is None:  # one by one
            good, each_read = [], []
            for row in rows:
                try:
                    each_read.append(_read([row], schema))
                    good.append(row)
                except (ValueError, pa.ArrowException) as error:
                    reason = " ".join(str(error).split())
                    rejected.append(RejectedRow(row.raw.encode(), reason, row.position, decoded=True))
            read = pa.concat_batches(each_read) if each_read else _read([], schema)
        return read, good, rejected

    def _own_schema(self, columns: str) -> pa.Schema:
        """The schema of rows that were decoded before: the lake's columns, but for those that their lines have."""
        own = {field.name: field for field in _fields_of(columns)}
        fields = [*own.values(), *(field for field in self._known if field.name not in own)]
        return pa.schema([field.with_nullable(nullable=True) for field in fields])


def _fields_of(columns: str) -> list[pa.Field]:
    try:
        return list(schema_from_json(columns)) if columns else []
    except (ValueError, OSError):  # a damaged line: its row stays, since the lake has no such column
        return []


def _read(rows: Sequence[QuarantinedRow], schema: pa.Schema) -> pa.RecordBatch:
    """Decoded rows; raises `ValueError` or an error of Arrow's if one has a value that is not of its column's type."""
    values = [row_from_text(row.raw.encode(), schema) for row in rows]
    try:
        columns = [pa.array([each[field.name] for each in values], field.type) for field in schema]
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"a value is not of its column's type: {error}") from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def is_decoded(row: QuarantinedRow) -> bool:
    """Whether a row was decoded, and could not be placed.

    Lines of earlier releases don't say; a decoded row was a JSON object, and a source's was none, or wrapped.
    """
    if row.decoded is not None:
        return row.decoded
    return row.raw.startswith("{") and not row.raw.startswith('{"row":{"columns"')


class Staying(Quarantine):
    """Where rows that don't fit would go: they are there already, and are counted."""

    def __init__(self, stayed: Counter[str]) -> None:
        self.stayed, self.rows = stayed, 0

    def add(
        self,
        rows: Iterable[RejectedRow],
        *,
        partition_path: str = UNKNOWN_PARTITION,  # noqa: ARG002  they stay where they are
        epoch: int | None = None,  # noqa: ARG002  they stay where they are
    ) -> None:
        """Counts rows by their reason now."""
        for row in rows:
            self.stayed[row.reason] += 1
            self.rows += 1

    def flush(self) -> None:
        """Does nothing."""


@dataclass(slots=True)
class _ReplayFence(OffsetsFence):
    """Lets in the rows that are certainly not in the lake, and that no export will read again.

    Attributes:
        hint: Where exports go on, by source partition: what lies below has been committed, or put aside.
        stayed: Counts the others.
        taken: Offsets let in, by partition key and source partition.
    """

    hint: Mapping[SourcePartition, int] = field(default_factory=dict)
    stayed: Counter[str] = field(default_factory=Counter)
    taken: dict[str, dict[SourcePartition, list[int]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )

    def new_rows(self, batch: SourceBatch, keys: npt.NDArray[np.int32], names: list[str], placed: Mask) -> Mask:
        """Implements `Fence`."""
        partitions, offsets = batch.numbers
        wanted = np.zeros(len(offsets), dtype=np.bool_)
        for number, key in enumerate(names):
            position = self.position_of(key)
            for partition in np.unique(partitions[(keys == number) & placed]).tolist():
                rows = np.flatnonzero((keys == number) & placed & (partitions == partition))
                passed = offsets[rows] < self.hint.get(partition, 0)
                lacking = position.lacks(self.epoch, partition, offsets[rows])
                self.stayed[NOT_PASSED] += int((lacking & ~passed).sum())
                self.stayed[THERE] += int((~lacking).sum())
                rows = rows[lacking & passed]
                wanted[rows] = True
                if len(rows):
                    self.taken[key][partition] += offsets[rows].tolist()
        return wanted

    def reject(self, row: RejectedRow) -> None:
        """Does nothing: the row is in quarantine already."""


class ReplayExport(Export):
    """Rows in quarantine are appended, each to the partition of its time, where that certainly has not got them."""

    kind, commit_kind, prefix = "offsets", "replay", "data"
    batches: Waiting

    def run(self) -> WriteReport:
        """Implements `Export.run`."""
        self.stayed: Counter[str] = Counter()
        fence = _ReplayFence(self.state.epoch, self._position_of, hint=self.state.hint, stayed=self.stayed)
        landing, staged, schema = self.land(self._time_placement(), fence=fence)
        self.stayed.update(self.batches.stayed)
        reports: dict[str, PartitionFacts] = {}
        if staged:
            taken = {key: _runs(fence.taken[key]) for key in staged}
            begun = _begin(self.folder, fence.epoch, {key: (self._commit_ids[key], taken[key]) for key in staged})
            reports = self._commit_all(staged, taken, fence.epoch, self.fix_schema(schema, staged))
            _take_out(self.folder, fence.epoch, _joined(taken.values()))
            self.folder.store.delete([begun])
        self.stayed = +self.stayed
        return self.result(landing, reports, schema)

    def given_up(self) -> WriteReport:
        """As `Export.given_up`; these rows are in quarantine no more."""
        return dataclasses.replace(super().given_up(), rows_read=self.rows_committed)

    def quarantine(self) -> Quarantine:
        """Implements `Export.quarantine`."""
        return Staying(self.stayed)

    @property
    def policy(self) -> SchemaPolicy:
        """Implements `Export.policy`: what does not fit stays where it is."""
        return "discard_value" if self.feed.schema_policy == "discard_value" else "discard_row"

    def position_read(self, key: str) -> Mapping[str, Any]:  # noqa: ARG002  rows from all over the source
        """Implements `Export.position_read`."""
        return {"kind": self.kind, "replayed": True}

    def _position_of(self, key: str) -> OffsetsPosition:
        return _offsets(self.settled(key))

    def _commit_all(
        self, staged: Staged, taken: Mapping[str, Mapping[SourcePartition, Runs]], epoch: int, schema: str
    ) -> dict[str, PartitionFacts]:
        together = _joined(taken.values())
        waiting = self._waiting(together)
        landed = dict.fromkeys(staged, together) if self.folder.commits_at_once else taken
        return self.commit_all(
            {key: (staged[key], self._plan(key, epoch, landed[key], waiting, schema)) for key in sorted(staged)}
        )

    def _waiting(self, taken: Mapping[SourcePartition, Runs]) -> dict[SourcePartition, Holes]:
        """The other rows in quarantine, any of which may belong to any partition."""
        waiting = {}
        for partition, offsets in self.batches.offsets.items():
            numbers = integers(offsets)
            rest = runs_of(numbers[~within(taken.get(partition, ()), numbers)])
            waiting[partition] = (
                self.state.rejected.get(partition, Holes()).filled(taken.get(partition, ())).added(rest)
            )
        return waiting

    def _plan(
        self,
        key: str,
        epoch: int,
        taken: Mapping[SourcePartition, Runs],
        passed: Mapping[SourcePartition, Holes],
        schema: str,
    ) -> Callable[[Manifest], Planned]:
        def plan(base: Manifest) -> Planned:
            position = _offsets(base)
            for partition, runs in taken.items():
                if not position.lacks(epoch, partition, _expanded(runs)).all():
                    raise CommitConflict(self.folder.data_folder(key), "another writer landed some of these rows")
            return Planned(position=position.replayed(epoch, taken, passed=passed), schema=schema)

        return plan


def _offsets(manifest: Manifest) -> OffsetsPosition:
    return manifest.position if isinstance(manifest.position, OffsetsPosition) else OffsetsPosition()


def _runs(taken: Mapping[SourcePartition, Sequence[int]]) -> dict[SourcePartition, Runs]:
    return {partition: runs_of(integers(offsets)) for partition, offsets in taken.items()}


def _expanded(runs: Runs) -> Ints:
    return integers([offset for first, last in runs for offset in range(first, last + 1)])


def _replays(folder: FeedFolder) -> str:
    return f"{folder.control}/replays"


def _begin(folder: FeedFolder, epoch: int, taken: Mapping[str, tuple[str, Mapping[SourcePartition, Runs]]]) -> str:
    """Writes down what is about to be landed by which commits; returns the object's key."""
    key = f"{_replays(folder)}/{folder.new_id()}.json"
    partitions = {name: {"commit_id": commit_id, "taken": _plain(each)} for name, (commit_id, each) in taken.items()}
    folder.store.create(key, json.dumps({"epoch": epoch, "partitions": partitions}).encode())
    return key


def _plain(taken: Mapping[SourcePartition, Runs]) -> dict[str, list[list[int | str]]]:
    return {str(partition): [list(map(offset_to_json, run)) for run in runs] for partition, runs in taken.items()}


def finish_replays(folder: FeedFolder) -> None:
    """Takes out what replays landed that died before they could; forgets those that are through, or long gone.

    A manifest remembers its last commits. What was landed longer ago stays in quarantine, and is not landed again.
    """
    for info in list(folder.store.list(_replays(folder))):
        try:
            document = json.loads(folder.store.get(info.key)[0])
        except ObjectNotFound:
            continue
        landed = [
            {
                partition_of(partition): tuple((int(first), int(last)) for first, last in runs)
                for partition, runs in each["taken"].items()
            }
            for key, each in document["partitions"].items()
            if _settled(folder, key).committed_already(each["commit_id"])
        ]
        if landed:
            _take_out(folder, document["epoch"], _joined(landed))
        if len(landed) == len(document["partitions"]) or folder.store.now() - info.modified_at > ABANDONED:
            folder.store.delete([info.key])


def _settled(folder: FeedFolder, key: str) -> Manifest:
    log = folder.log(key)
    return log.settle(log.load()).manifest


def _joined(taken: Iterable[Mapping[SourcePartition, Runs]]) -> dict[SourcePartition, Runs]:
    """The rows of all partitions, by source partition."""
    joined: dict[SourcePartition, Runs] = {}
    for each in taken:
        for partition, runs in each.items():
            joined[partition] = merged_runs(joined.get(partition, ()), runs)
    return joined


def _take_out(folder: FeedFolder, epoch: int, landed: Mapping[SourcePartition, Runs]) -> None:
    """Takes the lines of these rows out of quarantine, unless the rows went into what the feed was before."""
    folder.state.to_write()
    take_out(folder.store, folder.quarantine, lambda _, rows: [_is_gone(row, epoch, landed) for row in rows])
    folder.state.change(lambda now: now.without_rejected(landed, epoch=epoch))


def _is_gone(row: QuarantinedRow, epoch: int, gone: Mapping[SourcePartition, Runs]) -> bool:
    if row.offset is None or (row.epoch or 0) != epoch:
        return False
    partition, offset = row.offset
    return bool(within(gone.get(partition, ()), integers([offset]))[0])

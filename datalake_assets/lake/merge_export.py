"""How changes are merged into rows: one row a key, the newest change's, in one commit per partition.

A merge reads all changes first, into a file of its own, and then takes them in rounds of bounded size. In each round
the newest change of every key is found, then the files that have rows of these keys; only they are written anew,
without those rows, together with the new ones. Which change is newer, `datalake_assets.core.merging` says.

A key's row may move to another partition. What makes that exact on plain files, whose partitions are committed one
after another, is that each partition has a position of its own: all partitions that any change of a round names, and
those that lose a row, are committed, and one that was committed before a crash passes over what it has when the changes
are read again. Partitions that gain rows come first, so that a row is seen twice in between rather than not at all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datalake_assets.core.batches import Batches
from datalake_assets.core.facts import PartitionFacts, WriteReport
from datalake_assets.core.feed_state import FeedState
from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.merging import MergeRule, key_texts, merged_columns
from datalake_assets.core.position import Holes, Ints, Mask, OffsetsPosition, SourcePartition
from datalake_assets.core.schema import conform, schema_from_json
from datalake_assets.errors import CommitConflict, ConfigError, UnreadableFile
from datalake_assets.lake.commit import Planned
from datalake_assets.lake.deleted_keys import DeletedKeys
from datalake_assets.lake.export_commits import Staged
from datalake_assets.lake.export_kinds import OffsetsExport
from datalake_assets.lake.landing import OffsetsFence, Placement
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.merge_changes import Collecting, Round, Spool, Unwrapped, one_array
from datalake_assets.parquet.decoding import open_parquet, tables
from datalake_assets.parquet.failed_requests import answered
from datalake_assets.parquet.schemas import conform_table

__all__ = ["MergeExport"]

#: Files whose keys are looked at, and manifests that are read, at once.
THREADS = 8
SCAN_ROWS = 1 << 16


class MergeExport(OffsetsExport):
    """Changes numbered by the source are merged by the feed's key."""

    kind, commit_kind, prefix = "offsets", "merge", "data"

    def __init__(self, folder: FeedFolder, batches: Batches, *args: Any, **kwargs: Any) -> None:
        wrapped = folder.feed.merge.envelope == "debezium"
        super().__init__(folder, Unwrapped(batches, folder.feed) if wrapped else batches, *args, **kwargs)
        self._sent = batches
        self._round: Round | None = None

    def run(self) -> WriteReport:
        """Implements `Export.run`."""
        merged_columns(self.feed, self._sent.schema)
        self.rule, self.columns = MergeRule.of(self.feed), self.schema()
        shared = self.feed.shares_numbers
        self.fence = fence = OffsetsFence(self.state.epoch, lambda _: OffsetsPosition(), shared=shared)
        quarantine, placement = self.quarantine(), self._time_placement()
        written = self.folder.prepared(self.columns, time_column=placement.time_column)
        reports: dict[str, PartitionFacts] = {}
        with Spool(self.columns) as spool:
            contract = self.contract(self.columns)
            landing = Collecting(
                placement,
                contract,
                spool,
                quarantine,
                fence,
                rule=self.rule,
                done=_done(self.state),
                on_progress=self._on_progress,
            )
            landing.run(self.batches)
            self.quarantined = quarantine.rows
            encoded = self.fix_schema(self.columns, {}) if landing.rows_landed else ""
            rejected = fence.rejected_runs
            passed = self._passed(fence, rejected)
            for changes in spool.rounds(whole_numbers=shared):
                self._round = Round.of(changes, self.columns, self.rule, epoch=fence.epoch)
                for key, report in self._merged(self._round, placement, written, encoded, passed).items():
                    reports[key] = reports[key].and_then(report) if key in reports else report
        hint = {partition: offset + 1 for partition, offset in fence.seen.items()}
        known = landing.source_id
        self.folder.state.change(
            lambda now: self.there(now).with_hint(hint, epoch=fence.epoch, rejected=rejected, source_id=known)
        )
        return self.result(landing, reports, self.columns)

    def given_up(self) -> WriteReport:
        """As `Export.given_up`; how many changes were known has little to do with rows."""
        return replace(super().given_up(), rows_known=0)

    def settled(self, key: str) -> Manifest:
        """Implements `Export.settled`: of each round anew, since the one before may have made the first manifest."""
        if key not in self._logs:
            log = self.folder.log(key)
            self._logs[key] = log.settle(log.load())
        return self._logs[key].manifest

    def position_read(self, key: str) -> Mapping[str, Any]:  # noqa: ARG002  a round is read for all partitions
        """Implements `Export.position_read`: after the changes of this round."""
        if self._round is None:
            raise AssertionError
        return OffsetsPosition().advanced(self.fence.epoch, self._round.highest).to_json()

    def _merged(
        self,
        changes: Round,
        placement: Placement,
        written: pa.Schema,
        schema: str,
        passed: Mapping[SourcePartition, Holes],
    ) -> dict[str, PartitionFacts]:
        """One round: looks, writes anew, commits."""
        self.folder, self._logs = self.folder.pinned(), {}
        self._commit_ids.clear()
        bases = self._bases(changes)
        reader = _Reader(self.folder, self.columns, self.rule)
        found = reader.standing(bases, changes)
        deleted = None
        if changes.order is not None:
            deleted = DeletedKeys(self.folder, changes.order.type)
            changes.stale |= _stale(changes.order, found, deleted.newest_of(changes.keys))
        works = [work for key, base in bases.items() if (work := _Work.of(key, base, changes, found.get(key, ())))]
        staged = self._written(works, changes, placement, written, reader)
        if deleted is not None and changes.order is not None:
            gone = pa.array(changes.deleted & ~changes.stale)
            deleted.remember(changes.keys.filter(gone), changes.order.filter(gone), keep=self.feed.merge.deletes_kept)
        self._refuse_overtaken(changes, staged)
        return self.commit_all(
            {
                work.key: (staged.get(work.key, ()), work.plan(self.folder, changes, schema, passed))
                for work in sorted(works, key=lambda work: work.turn)
            }
        )

    def _refuse_overtaken(self, changes: Round, staged: Staged) -> None:
        """Another writer that is done with these changes may have put some aside that this one takes, by another clock
        or another revision of the feed: then no position keeps this one out.
        """
        state = self.folder.state.load()
        if state.epoch > changes.epoch or not _done(state).admits(changes.epoch, changes.lowest):
            self.discard(staged)
            raise CommitConflict(self.folder.data_root, "another writer merged these changes meanwhile")

    def _bases(self, changes: Round) -> dict[str, Manifest]:
        """The manifests of all partitions that are there, or that a change names."""
        keys = sorted({*self.folder.partition_keys(), *changes.named})
        with ThreadPoolExecutor(1 if self.folder.commits_at_once else THREADS) as pool:
            return dict(zip(keys, pool.map(self.settled, keys), strict=True))

    def _written(
        self, works: Sequence[_Work], changes: Round, placement: Placement, schema: pa.Schema, reader: _Reader
    ) -> Staged:
        """Stages what becomes of the files that lose rows, and the new rows."""
        writer = self._writer(placement, schema)
        try:
            for work in works:
                for file, lost in work.lost.items():
                    for rows in reader.without(work.key, file, lost):
                        writer.write(rows)
                for rows in changes.rows.take(pa.array(work.gained)).to_batches():
                    writer.write(conform(rows, self.columns))
            return writer.close()
        except BaseException:
            writer.abort()
            raise


def _done(state: FeedState) -> OffsetsPosition:
    """The changes that all partitions have taken: a feed's hint moves once they are committed."""
    return OffsetsPosition({partition: (state.epoch, offset) for partition, offset in state.hint.items()})


@dataclass(frozen=True, slots=True)
class _Standing:
    """The rows of a file whose keys have changes.

    Attributes:
        file: The file.
        rows: Their numbers in the file, ascending.
        which: Their changes, by number in the round.
        older: Which of them are not newer than their change.
    """

    file: DataFile
    rows: Ints
    which: Ints
    older: Mask


def _stale(order: pa.Array, found: Mapping[str, Sequence[_Standing]], deletions: pa.Array) -> Mask:
    """Which changes are older than a row that stands, or than a deletion that is known."""
    stale = _true(pc.greater(deletions, order))
    for each in (one for standing in found.values() for one in standing):
        stale[each.which[~each.older]] = True
    return stale


@dataclass(frozen=True, slots=True)
class _Work:
    """What a round does to one partition.

    Attributes:
        key: The partition.
        base: Its manifest, as it was looked at.
        lost: The numbers of the rows that leave, by file.
        gained: The changes whose rows come.
    """

    key: str
    base: Manifest
    lost: Mapping[DataFile, Ints]
    gained: Ints

    @classmethod
    def of(cls, key: str, base: Manifest, changes: Round, standing: Sequence[_Standing]) -> _Work | None:
        """None if no change touches the partition; what it took before, as its position says, is no news."""
        is_new = _position(base).new_rows(changes.epoch, changes.partitions, changes.offsets)
        lost = {}
        for each in standing:
            rows = each.rows[each.older & is_new[each.which]]
            if len(rows):
                lost[each.file] = rows
        gained = np.flatnonzero((changes.places == key) & ~changes.deleted & ~changes.stale & is_new)
        return cls(key, base, lost, gained) if lost or key in changes.named else None

    @property
    def turn(self) -> tuple[int, str]:
        """Partitions that only gain rows are committed first, those that only lose some last."""
        return (1 if len(self.gained) and self.lost else 0 if len(self.gained) else 2, self.key)

    def plan(
        self, folder: FeedFolder, changes: Round, schema: str, passed: Mapping[SourcePartition, Holes]
    ) -> Callable[[Manifest], Planned]:
        """What its commit does on whatever base: it was looked at as one, and is another if anybody changed it."""
        names = {file.name for file in self.base.files}

        def plan(base: Manifest) -> Planned:
            if base.position != self.base.position or {file.name for file in base.files} != names:
                raise CommitConflict(folder.data_folder(self.key), "another writer changed it meanwhile")
            moved = _position(base).advanced(changes.epoch, changes.highest, passed=passed)
            return Planned(position=moved, remove=tuple(file.name for file in self.lost), schema=schema)

        return plan


def _position(manifest: Manifest) -> OffsetsPosition:
    return manifest.position if isinstance(manifest.position, OffsetsPosition) else OffsetsPosition()


class _Reader:
    """Finds rows by their keys, and reads files without some rows.

    Args:
        folder: The feed's corner of the lake.
        schema: The feed's columns.
        rule: The feed's rule.
    """

    def __init__(self, folder: FeedFolder, schema: pa.Schema, rule: MergeRule) -> None:
        self._folder, self._schema, self._rule = folder, schema, rule
        names = [*rule.key, *filter(None, [rule.order_by])]
        self._looked_at = pa.schema([schema.field(name) for name in names])

    def standing(self, bases: Mapping[str, Manifest], changes: Round) -> dict[str, list[_Standing]]:
        """The rows of the changes' keys, by partition."""
        files = [(key, file) for key, base in bases.items() for file in base.files]
        values = _Values.of(changes.rows.column(self._rule.key[0]))
        found = defaultdict(list)
        with ThreadPoolExecutor(THREADS, thread_name_prefix="merge-keys") as pool:
            looked = pool.map(lambda each: self._standing(each[0], each[1], changes, values), files)
            for (key, _), standing in zip(files, looked, strict=True):
                if standing is not None:
                    found[key].append(standing)
        return found

    def _standing(self, key: str, file: DataFile, changes: Round, values: _Values) -> _Standing | None:
        rows: list[Ints] = []
        which: list[Ints] = []
        older: list[Mask] = []
        with _Opened(self._folder, key, file) as parquet:
            if not set(self._rule.key) <= set(parquet.schema_arrow.names):
                return None
            columns = [name for name in self._looked_at.names if name in parquet.schema_arrow.names]
            first = 0
            for number in range(parquet.num_row_groups):
                group = parquet.metadata.row_group(number)
                if values.may_be_in(group, self._rule.key[0]):
                    at = first
                    for batch in parquet.iter_batches(SCAN_ROWS, row_groups=[number], columns=columns):
                        hits, changed, passed = self._hits(pa.Table.from_batches([batch]), changes)
                        rows.append(hits + at)
                        which.append(changed)
                        older.append(passed)
                        at += batch.num_rows
                first += group.num_rows
        if not any(map(len, rows)):
            return None
        return _Standing(file, np.concatenate(rows), np.concatenate(which), np.concatenate(older))

    def _hits(self, table: pa.Table, changes: Round) -> tuple[Ints, Ints, Mask]:
        """Rows whose keys have changes: their numbers, their changes', and which of them are not newer than these."""
        rows = conform_table(table, self._looked_at).combine_chunks()
        at = pc.index_in(key_texts([one_array(rows.column(name)) for name in self._rule.key]), value_set=changes.keys)
        hits = np.flatnonzero(np.asarray(at.is_valid()))
        which = np.asarray(at.drop_null()).astype(np.int64)
        if changes.order is None or self._rule.order_by is None:
            return hits, which, np.ones(len(hits), dtype=np.bool_)
        own = one_array(rows.column(self._rule.order_by)).take(pa.array(hits))
        return hits, which, ~_true(pc.greater(own, changes.order.take(pa.array(which))))

    def without(self, key: str, file: DataFile, lost: Ints) -> Iterator[pa.RecordBatch]:
        """A file's rows but for some, in pieces.

        Raises:
            CommitConflict: It has a column that another export brought meanwhile.
            ConfigError: It has a column that the feed does not know, and that would be lost.
        """
        with _Opened(self._folder, key, file) as parquet:
            others = sorted(set(parquet.schema_arrow.names) - set(self._schema.names))
            if others:
                known = self._folder.state.load().schema
                if known is not None and not set(others).difference(schema_from_json(known).names):
                    reason = f"another export has brought column {others[0]!r} meanwhile"
                    raise CommitConflict(self._folder.data_root, reason)
                raise ConfigError(
                    f"{self._folder.file_key(key, file.name)} has column {others[0]!r}, which feed"
                    f" {self._folder.feed.name!r} does not: to merge it would lose that; take the column out of it"
                )
            first = 0
            for table in tables(parquet):
                begin, end = np.searchsorted(lost, [first, first + table.num_rows])
                kept = np.ones(table.num_rows, dtype=np.bool_)
                kept[lost[begin:end] - first] = False
                first += table.num_rows
                rows = conform_table(table.filter(pa.array(kept)), self._schema.remove_metadata())
                for batch in rows.combine_chunks().to_batches():
                    yield pa.RecordBatch.from_arrays(batch.columns, schema=self._schema)
            if first != file.rows:
                reason = f"{first} rows, its manifest says {file.rows}"
                raise UnreadableFile(self._folder.file_key(key, file.name), reason)


class _Opened:
    """Opens a data file; what Arrow and the store raise over it is ours afterwards."""

    def __init__(self, folder: FeedFolder, key: str, file: DataFile) -> None:
        self._folder, self._at = folder, folder.file_key(key, file.name)

    def __enter__(self) -> pq.ParquetFile:
        store = self._folder.data_store
        with ExitStack() as opening:
            try:
                opening.enter_context(answered(self._at))
                source = opening.enter_context(store.filesystem().open_input_file(store.path(self._at)))
                parquet = open_parquet(source)
            except (pa.ArrowException, OSError) as error:
                raise self._named(error) from error
            self._closing = opening.pop_all()
        return parquet

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()
        if isinstance(error, pa.ArrowException | OSError):
            raise self._named(error) from error

    def _named(self, error: BaseException) -> CommitConflict | UnreadableFile:
        if self._folder.data_store.head(self._at) is None:
            return CommitConflict(self._at, "it was merged by somebody else, or is gone")
        return UnreadableFile(self._at, f"cannot be read: {str(error).splitlines()[0]}")


@dataclass(frozen=True, slots=True)
class _Values:
    """The values that changes have in a column, where footers can tell that a row group has none of them.

    Attributes:
        values: Ascending; None if footers cannot tell.
    """

    values: npt.NDArray[Any] | None

    @classmethod
    def of(cls, column: pa.ChunkedArray) -> _Values:
        """Of whole numbers and texts: Arrow gives their bounds as the values that they are."""
        kind = column.type
        if pa.types.is_integer(kind):
            return cls(np.unique(np.asarray(column)))
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return cls(np.array(sorted(set(column.to_pylist())), dtype=object))
        return cls(None)

    def may_be_in(self, group: pq.RowGroupMetaData, name: str) -> bool:
        """Whether a row group may have one of the values."""
        if self.values is None or "." in name:  # a field of a struct has a path like that
            return True
        for number in range(group.num_columns):
            column = group.column(number)
            if column.path_in_schema == name:
                bounds = column.statistics
                if bounds is None or not bounds.has_min_max:
                    return True
                first = np.searchsorted(self.values, bounds.min, side="left")
                return bool(first < len(self.values) and self.values[first] <= bounds.max)
        return True


def _true(mask: pa.Array) -> Mask:
    return np.array(pc.fill_null(mask, fill_value=False))

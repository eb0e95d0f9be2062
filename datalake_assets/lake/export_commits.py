"""How a feed is landed exactly once: one pass over the source, staged, then one commit per partition."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, reduce
from typing import Any, TypeVar

import pyarrow as pa

from datalake_assets.core.batches import Batches, ReadRequest
from datalake_assets.core.facts import PartitionFacts
from datalake_assets.core.feed_state import FeedState
from datalake_assets.core.files import DataFile, data_file_name
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import PartitionBy, keys_of, partition_columns
from datalake_assets.core.schema import SchemaPolicy, annotated, evolve, schema_from_json, schema_to_json
from datalake_assets.errors import CommitConflict, ConfigError, InvalidFeed
from datalake_assets.feed import Feed
from datalake_assets.lake.avro_twins import AvroTwins, check_twins
from datalake_assets.lake.commit import Change, Loaded, Planned
from datalake_assets.lake.landing import AHEAD, Contract, Fence, Landing, Placement
from datalake_assets.lake.layout import FeedFolder, discarded_folder
from datalake_assets.lake.quarantined_rows import Quarantine
from datalake_assets.lake.store.base import StagedFile, StagedWriter
from datalake_assets.lake.store.swap import retried
from datalake_assets.lake.table import Progress, WriteReport
from datalake_assets.lake.watching import watched_pass
from datalake_assets.parquet.rolling import RollingWriter
from datalake_assets.parquet.writer import ParquetSettings, use_pool
from datalake_assets.tracing import span

__all__ = ["Export", "Staged", "begun_again", "removed_meanwhile"]

logger = logging.getLogger(__name__)

#: Reasons that a note names.
NAMED = 5
#: Selected partitions from which on it is cheaper to list manifests than to ask for each.
MANY = 10

_Export = TypeVar("_Export", bound="Export")
Staged = Mapping[str, Sequence[tuple[StagedFile, DataFile]]]
#: A partition's staged files, and what its commit is to do on whatever base it is tried.
Wanted = tuple[Sequence[tuple[StagedFile, DataFile]], Callable[[Manifest], Planned | None]]


class Export(ABC):
    """One pass over the source and the commits that follow.

    Args:
        folder: The feed's corner of the lake.
        batches: The source.
        partitions: The selected partitions.
        run_id: Written into the history.
        allow_shrink: Accept a replacement with fewer rows.
        on_progress: Called now and then.
    """

    kind: str
    commit_kind: str
    prefix: str
    #: Whether a partition without rows has a file too, so that readers learn its columns.
    keeps_empty = False
    #: Names this pass in the rows that it puts aside, where a later one has to tell.
    reading = ""

    def __init__(
        self,
        folder: FeedFolder,
        batches: Batches,
        partitions: tuple[str, ...],
        run_id: str,
        *,
        allow_shrink: bool,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        self.folder, self.feed, self.batches, self.partitions = folder.pinned(), folder.feed, batches, partitions
        self.run_id, self.allow_shrink, self._on_progress = run_id, allow_shrink, on_progress
        self.state = folder.state.to_write().with_kind(self.kind, feed=self.feed.name)
        self._check_epoch(batches.request)
        self.notes: list[str] = []
        self._twins: AvroTwins | None = None
        self._logs: dict[str, Loaded] = {}
        self._commit_ids: defaultdict[str, str] = defaultdict(folder.new_id)
        self.committed: dict[str, PartitionFacts] = {}
        self.rows_committed = 0

    def there(self, now: FeedState) -> FeedState:
        """A feed's state, if it is of the feed that this export began with.

        Raises:
            ConfigError: The feed was removed meanwhile: what is landed now would be taken for all of a feed that gets
                its name.
        """
        if not now.goes_on_from(self.state):
            raise removed_meanwhile(self.feed)
        return now

    def _check_epoch(self, request: ReadRequest) -> None:
        """What is followed is read long before it is landed; a read that may begin an epoch did so by its first part.

        Raises:
            CommitConflict: It is of another epoch.
            ConfigError: It begins behind rows of which nothing is known any more.
        """
        if request.start_offsets and not self.state.write_id:
            raise removed_meanwhile(self.feed)
        if request.epoch is not None and not request.epoch <= self.state.epoch <= request.epoch + request.new_epoch:
            raise CommitConflict(
                self.feed.path, "since it was read, its source was taken for another; nothing was landed"
            )

    @abstractmethod
    def run(self) -> WriteReport:
        """Reads, stages and commits.

        Raises:
            CommitConflict: Another writer landed some of the same rows: begin again.
        """

    def run_traced(self) -> WriteReport:
        """Runs as one span of a trace, and as one pass for whoever watches."""
        with span("export", feed=self.feed.path), watched_pass(self.feed):
            try:
                return self.run()
            finally:
                if self._twins is not None:
                    self._twins.discard()

    @abstractmethod
    def position_read(self, key: str) -> Mapping[str, Any]:
        """How far a partition's rows have been read so far, as JSON."""

    @property
    def source(self) -> str:
        """What is read, for messages."""
        return f"asset {self.feed.asset!r}" if self.feed.asset else f"feed {self.feed.name!r}"

    def settled(self, key: str) -> Manifest:
        """A partition's manifest as it was at first sight, what was interrupted finished; or after our own commit."""
        if key not in self._logs:
            log = self.folder.log(key)
            self._logs[key] = Loaded(None, Manifest()) if key in self._absent else log.settle(log.load())
        return self._logs[key].manifest

    @cached_property
    def _absent(self) -> frozenset[str]:
        """Of many selected partitions, those without a manifest: one listing instead of a request for each."""
        if len(self.partitions) <= MANY:
            return frozenset()
        return frozenset(self.partitions).difference(self.folder.partition_keys())

    def land(
        self, placement: Placement, *, fence: Fence | None = None, fingerprint: bool = False
    ) -> tuple[Landing, Staged, pa.Schema]:
        """One pass: every row known, quarantined or staged."""
        use_pool("jemalloc")
        schema = self.schema()
        written = self.folder.prepared(schema, time_column=placement.time_column)
        writer = self._writer(placement, written)
        quarantine = self.quarantine()
        landing = Landing(
            placement,
            self.contract(schema),
            writer,
            quarantine,
            fence=fence,
            fingerprint=fingerprint,
            on_progress=self._on_progress,
            reading=self.reading,
        )
        try:
            landing.run(self.batches)
            if self.keeps_empty and not landing.rows_landed:
                writer.write_empty(placement.key)
            staged = writer.close()
        except BaseException:
            writer.abort()
            raise
        self.quarantined, self.misfit_rows = quarantine.rows, landing.misfit_rows
        return landing, staged, schema

    def contract(self, schema: pa.Schema) -> Contract:
        """What rows have to be like."""
        beside = Quarantine(self.folder.store, discarded_folder(self.feed))
        return Contract(schema, self.policy, beside, self.folder.partition_path)

    def quarantine(self) -> Quarantine:
        """Where rows go that cannot be landed."""
        return Quarantine(self.folder.store, self.folder.quarantine)

    @property
    def policy(self) -> SchemaPolicy:
        """What becomes of rows that do not fit the feed's schema."""
        return self.feed.schema_policy

    def schema(self) -> pa.Schema:
        """The feed's schema from now on."""
        schema = incoming = self.batches.schema
        if self.state.schema is not None:
            known = schema_from_json(self.state.schema)
            schema = evolve(known, incoming, policy=self.feed.schema_policy, source=self.source)
        hidden = sorted(set(partition_columns(self.feed)).intersection(schema.names))
        if hidden:
            raise InvalidFeed(
                self.feed.name, f"column {hidden[0]!r} is named like a partition key; rename it in the feed"
            )
        return annotated(schema, {name: note.model_dump() for name, note in self.feed.columns.items()})

    def commit_all(self, wanted: Mapping[str, Wanted]) -> dict[str, PartitionFacts]:
        """Commits partitions and reports each; after a conflict, what is staged for the rest is given up."""
        done: dict[str, tuple[Manifest, Planned | None]] = {}
        reports: dict[str, PartitionFacts] = {}

        def remembering(key: str, plan: Callable[[Manifest], Planned | None]) -> Callable[[Manifest], Planned | None]:
            def planned(base: Manifest) -> Planned | None:
                if key in self._logs and self._logs[key].manifest.generation and not base.generation:
                    raise removed_meanwhile(self.feed)
                found = plan(base)
                done[key] = (base, found)
                return found

            return planned

        changes = {
            key: Change(self._commit_ids[key], self.commit_kind, tuple(files), remembering(key, plan), self.run_id)
            for key, (files, plan) in wanted.items()
        }
        # what was read at first sight need not be read again: the swap says whether it is another by now
        try:
            for key, loaded in self.folder.commit(changes, bases=dict(self._logs)):
                self._logs[key] = loaded
                if self._twins is not None:
                    self._twins.publish(key, loaded.manifest.files)
                added = _added(wanted[key][0], *done[key]) if key in done else (0, 0)
                facts = self.folder.report(key, loaded.manifest)
                reports[key] = facts = replace(facts, rows_added=added[0], files_added=added[1])
                self.committed[key] = self.committed[key].and_then(facts) if key in self.committed else facts
                self.rows_committed += sum(file.rows for _, file in wanted[key][0])
        except CommitConflict:
            self.discard({key: files for key, (files, _) in wanted.items() if key not in reports})
            raise
        return reports

    def commit(
        self, key: str, files: Sequence[tuple[StagedFile, DataFile]], plan: Callable[[Manifest], Planned | None]
    ) -> PartitionFacts:
        """Commits one partition and reports it."""
        return self.commit_all({key: (files, plan)})[key]

    def fix_schema(self, schema: pa.Schema, staged: Staged) -> str:
        """Fixes kind and schema in the feed's state before the first commit that relies on them.

        Columns that another writer brought meanwhile stay: else nobody would see their values any more.

        Raises:
            SchemaChanged: Another writer made another contract meanwhile; what is staged is given up.
        """
        encoded, before = schema_to_json(schema), self.state.schema

        def fixed(now: FeedState) -> FeedState:
            self.there(now)
            agreed = encoded if now.schema in {None, before, encoded} else self._agreed(schema, now.schema)
            return replace(now.with_kind(self.kind, feed=self.feed.name), schema=agreed)

        try:
            self.state = self.folder.state.change(fixed)
        except BaseException:
            self.discard(staged)
            raise
        return self.state.schema or encoded

    def _agreed(self, schema: pa.Schema, theirs: str | None) -> str:
        known = schema_from_json(theirs or "")
        evolves = self.feed.schema_policy == "evolve" or set(schema.names) <= set(known.names)
        policy: SchemaPolicy = "evolve" if evolves else "freeze"
        return schema_to_json(evolve(known, schema, policy=policy, source=self.source))

    def given_up(self) -> WriteReport:
        """What was committed before a conflict; an export that begins again finds it in the lake, and adds to it."""
        return WriteReport(tuple(self.committed.values()), 0, 0, 0, self.batches.schema, {})

    def discard(self, staged: Staged) -> None:
        """Gives up staged files."""
        for files in staged.values():
            for file, _ in files:
                self.folder.data_store.discard_staged(file)

    def result(
        self,
        landing: Landing,
        reports: Mapping[str, PartitionFacts],
        schema: pa.Schema,
        *,
        removed: Sequence[str] = (),
    ) -> WriteReport:
        """The report of this write; partitions that were selected and not touched are reported as they are."""
        touched = dict(reports)
        for key in self.partitions:
            if key not in touched:
                touched[key] = self.folder.report(key, self.settled(key))
        ordered = sorted(touched.values(), key=lambda report: (len(report.key), report.key))
        return WriteReport(
            partitions=tuple(ordered),
            rows_read=landing.rows_read,
            rows_quarantined=self.quarantined,
            rows_known=landing.rows_known,
            schema=schema,
            requests={},
            removed=tuple(removed),
            notes=(*self.notes, *filter(None, [self.batches.unfinished, self._misfits_line(landing)])),
            misfits=dict(landing.misfits),
            values_discarded=landing.values_discarded,
        )

    def _misfits_line(self, landing: Landing) -> str:
        """What did not fit the feed's contract, and where it is; empty if all did."""
        counted = [f"{reason} ({count:,})" for reason, count in landing.misfits.most_common(NAMED)]
        more = len(landing.misfits) - NAMED
        reasons = "; ".join([*counted, *([f"and {more:,} more reasons"] if more > 0 else [])])
        if not landing.values_discarded:
            return f"rows do not fit the feed's schema, and are in quarantine: {reasons}" if reasons else ""
        folder = f"{self.folder.store.uri}/{discarded_folder(self.feed)}"
        values = f"values that do not fit the feed's schema were left out ({landing.values_discarded:,})"
        return f"{values}; the rows as they came are in {folder}: {reasons}"

    def _writer(self, placement: Placement, schema: pa.Schema) -> RollingWriter[StagedFile]:
        written = self.feed.format
        if written.also:
            check_twins(self.feed, schema)
            self._twins = self._twins or AvroTwins(self.folder, schema.remove_metadata())
        settings = ParquetSettings(
            compression=written.compression,
            profile=written.profile,
            target_file_bytes=written.target_file_size_bytes,
            row_group_bytes=written.row_group_bytes,
        )
        at = self.folder.store.now()

        def open_file(key: str) -> StagedWriter:
            name = data_file_name(self.prefix, at, self.folder.new_id())
            return self.folder.data_store.stage(f"{self.folder.data_folder(key)}/{name}")

        def partition_of(times: pa.Array) -> pa.DictionaryArray:
            return keys_of(times, placement.by)

        return RollingWriter(
            schema,
            settings,
            open_file=open_file,
            discard=self.folder.data_store.discard_staged,
            partition_of=partition_of if placement.time_column else placement.key,
            time_column=placement.time_column,
            part_of=self.folder.part_of(),
            beside=self._twins.begin if self._twins is not None else None,
            metadata=self._footer,
        )

    def _footer(self, key: str) -> dict[str, str]:
        """What a file says of itself, for whoever finds it without its manifest."""
        return {
            "datalake.feed": self.feed.name,
            "datalake.commit_id": self._commit_ids[key],
            "datalake.run_id": self.run_id,
            "datalake.position": json.dumps(self.position_read(key)),
        }

    def _time_placement(self) -> Placement:
        return Placement(
            time_column=self.batches.time_column,
            by=PartitionBy(self.feed.partition_by),
            earliest=self.feed.start_time,
            latest=self.folder.store.now() + AHEAD,
        )


def removed_meanwhile(feed: Feed) -> ConfigError:
    """The error for an export of a feed that was removed while it ran."""
    return ConfigError(f"feed {feed.name!r} was removed meanwhile; nothing more of it is landed")


def begun_again(begin: Callable[[], _Export], *, attempts: int) -> tuple[_Export, WriteReport]:
    """Runs an export; after a conflict another one, whose report has what was committed before, too.

    Args:
        begin: Gives an export that has not run.
        attempts: How many there may be.

    Returns:
        The one that came to its end, and what all did.

    Raises:
        CommitConflict: There were too many.
    """
    before: list[WriteReport] = []

    def run() -> tuple[_Export, WriteReport]:
        export = begin()
        try:
            return export, export.run_traced()
        except CommitConflict:
            before.append(export.given_up())
            raise

    export, report = retried(run, attempts=attempts, on=(CommitConflict,))
    return export, reduce(WriteReport.and_then, [*before, report])


def _added(files: Sequence[tuple[StagedFile, DataFile]], base: Manifest, planned: Planned | None) -> tuple[int, int]:
    """Rows, net, and files that a commit added itself: by now the manifest may have other writers' commits as well."""
    if planned is None:
        return 0, 0
    removed = set(planned.remove)
    return sum(file.rows for _, file in files) - sum(file.rows for file in base.files if file.name in removed), len(
        files
    )

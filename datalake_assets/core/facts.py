"""The one place for figures of partitions, so that writes, checks, summaries and the command line agree on them.

`PartitionFacts` holds what the manifest gives; `PlannedPartition` adds what a compaction would do, which
`datalake_assets.core.compaction` works out. `WriteReport` and `FeedTotals` say what a write did, and to what;
`Problem`, `PagesCompared` and `Expired` what a look at a table found, and what it let go of.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import PastCommit
from datalake_assets.core.values import Value
from datalake_assets.core.wording import size_text

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "SIZE_BUCKETS",
    "UPKEEP",
    "Deletion",
    "Expired",
    "ExportResult",
    "FailedCheck",
    "FeedTotals",
    "FileChanges",
    "Outlook",
    "PagesCompared",
    "PartitionFacts",
    "PlannedPartition",
    "Problem",
    "Progress",
    "WaitingRows",
    "WriteReport",
    "bucket_bounds",
    "bucket_label",
    "bucket_of",
]

#: Kinds of commits that bring nothing from a source: of how fresh a feed is they do not tell.
UPKEEP = frozenset({"compact", "convert", "erase"})
#: Buckets of file sizes: below 64 KiB, fourteen that double from there, 1 GiB and more.
SIZE_BUCKETS = 16
#: 64 KiB is 2 to this.
_FIRST_POWER = 16
#: The bucket by the length of a size in bits; a table, since every file of a lake asks it.
_BUCKETS = tuple(min(max(bits - _FIRST_POWER, 0), SIZE_BUCKETS - 1) for bits in range(65))


def bucket_of(size_bytes: int) -> int:
    """The bucket of a file size, from 0 to `SIZE_BUCKETS` - 1."""
    return _BUCKETS[size_bytes.bit_length()]


def bucket_bounds(bucket: int) -> tuple[int, int | None]:
    """Sizes in a bucket: from the first, below the second; the last bucket has no end."""
    low = 1 << (bucket + _FIRST_POWER - 1) if bucket else 0
    return low, None if bucket == SIZE_BUCKETS - 1 else 1 << (bucket + _FIRST_POWER)


def bucket_label(bucket: int) -> str:
    """``below 64 KiB``, ``64 KiB to 128 KiB``, ``1 GiB and more``."""
    low, high = bucket_bounds(bucket)
    if high is None:
        return f"{size_text(low)} and more"
    return f"{size_text(low)} to {size_text(high)}" if low else f"below {size_text(high)}"


class PartitionFacts(Value, frozen=True):
    """A partition, by its manifest.

    Attributes:
        key: Partition key.
        rows: Rows.
        files: Data files.
        small_files: Of these, files below the feed's ``small_file_bytes``.
        size_bytes: Size of the files.
        small_bytes: Size of the small ones.
        largest_bytes: Size of the largest one; 0 without files.
        sizes: Number of files by size bucket (`bucket_of`).
        min_time: Earliest partition time; None without rows or without a time column.
        max_time: Latest partition time; None where ``min_time`` is.
        generation: Commits so far.
        position: The partition's position, as JSON.
        rows_added: Rows in files that a write added, less rows in files that it removed; of a table's new version, less
            the rows of the version before.
        files_added: Files that this write added.
    """

    key: str
    rows: int = 0
    files: int = 0
    small_files: int = 0
    size_bytes: int = 0
    small_bytes: int = 0
    largest_bytes: int = 0
    sizes: tuple[int, ...] = (0,) * SIZE_BUCKETS
    min_time: datetime | None = None
    max_time: datetime | None = None
    generation: int = 0
    position: Mapping[str, Any] = msgspec.field(default_factory=dict)
    rows_added: int = 0
    files_added: int = 0

    @classmethod
    def of(
        cls,
        key: str,
        files: Sequence[DataFile],
        *,
        small_below_bytes: int,
        generation: int = 0,
        position: Mapping[str, Any] | None = None,
        rows_added: int = 0,
        files_added: int = 0,
    ) -> PartitionFacts:
        """Adds up ``files``; those below ``small_below_bytes`` count as small."""
        sizes = [file.size_bytes for file in files]
        small = [size for size in sizes if size < small_below_bytes]
        buckets = [0] * SIZE_BUCKETS
        for size in sizes:
            buckets[_BUCKETS[size.bit_length()]] += 1
        return PartitionFacts(
            key=key,
            rows=sum([file.rows for file in files]),
            files=len(sizes),
            small_files=len(small),
            size_bytes=sum(sizes),
            small_bytes=sum(small),
            largest_bytes=max(sizes, default=0),
            sizes=tuple(buckets),
            min_time=min([file.min_time for file in files if file.min_time], default=None),
            max_time=max([file.max_time for file in files if file.max_time], default=None),
            generation=generation,
            position=position or {},
            rows_added=rows_added,
            files_added=files_added,
        )

    def and_then(self, later: PartitionFacts) -> PartitionFacts:
        """What two commits did to a partition, and how it is after the second."""
        rows, files = self.rows_added + later.rows_added, self.files_added + later.files_added
        return replace(later, rows_added=rows, files_added=files)


class Outlook(Value, frozen=True):
    """What a compaction by the feed's policy would do with a partition now.

    Attributes:
        files_after: Files after it.
        files_to_merge: Files that it would merge.
        small_bytes_to_merge: Size of the small ones among them.
        files_to_split: Files that are too large, and would become several.
        bytes_to_split: Their size.
        bytes_to_rewrite: Size of all files that it would take.
    """

    files_after: int
    files_to_merge: int = 0
    small_bytes_to_merge: int = 0
    files_to_split: int = 0
    bytes_to_split: int = 0
    bytes_to_rewrite: int = 0


_FACTS, _OUTLOOK = PartitionFacts.__struct_fields__, Outlook.__struct_fields__


class PlannedPartition(PartitionFacts, frozen=True):
    """A partition, and what a compaction by the feed's policy would do with it now.

    Attributes:
        files_after: Files that it would leave; this and the next five are `Outlook`'s.
        files_to_merge: Files to merge.
        small_bytes_to_merge: Size of the small ones among them.
        files_to_split: Files to split.
        bytes_to_split: Their size.
        bytes_to_rewrite: Size of all files to rewrite.
        unusable: Files that no compaction can take as they are, with the reason.
        last_write: When rows last came or went, where it was asked for; None if unknown. Compactions are no writes.
        last_export: When rows last came in, where it was asked for; None if unknown.
        history: The last commits, oldest first, where they were asked for.
    """

    files_after: int = 0
    files_to_merge: int = 0
    small_bytes_to_merge: int = 0
    files_to_split: int = 0
    bytes_to_split: int = 0
    bytes_to_rewrite: int = 0
    unusable: tuple[tuple[str, str], ...] = ()
    last_write: datetime | None = None
    last_export: datetime | None = None
    history: tuple[PastCommit, ...] = ()

    @classmethod
    def from_facts(
        cls,
        facts: PartitionFacts,
        outlook: Outlook,
        *,
        unusable: Sequence[tuple[str, str]] = (),
        last_write: datetime | None = None,
        last_export: datetime | None = None,
        history: Sequence[PastCommit] = (),
    ) -> PlannedPartition:
        """Facts with what a plan makes of them."""
        figures: dict[str, Any] = {name: getattr(facts, name) for name in _FACTS}
        figures |= {name: getattr(outlook, name) for name in _OUTLOOK}
        return PlannedPartition(
            **figures,
            unusable=tuple(unusable),
            last_write=last_write,
            last_export=last_export,
            history=tuple(history),
        )

    @property
    def files_to_rewrite(self) -> int:
        """Files that a compaction would take."""
        return self.files_to_merge + self.files_to_split

    @property
    def needs_compaction(self) -> bool:
        """Whether compaction would change it."""
        return bool(self.files_to_rewrite)

    @property
    def compactions(self) -> tuple[PastCommit, ...]:
        """The compactions among the commits that are remembered, oldest first."""
        return tuple(commit for commit in self.history if commit.kind == "compact")

    @property
    def remembers_all(self) -> bool:
        """Whether the history goes back to the first commit."""
        return len(self.history) >= self.generation


class FeedTotals(Value, frozen=True):
    """A feed as a whole, by its summary.

    Attributes:
        partitions: Partitions with files.
        rows: Their rows.
        files: Their files.
        small_files: Of these, files below the feed's ``small_file_bytes``.
        size_bytes: Their size.
    """

    partitions: int
    rows: int
    files: int
    small_files: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class WaitingRows:
    """Rows of a feed beside its table, in quarantine or kept as they came, each counted once.

    Attributes:
        matching: Those that a condition is true of.
        undecided: Those that nobody can decide on: not decoded, or of other columns than the condition is about.
    """

    matching: int = 0
    undecided: int = 0


class Progress(Value, frozen=True):
    """How far a write is; reported every few hundred milliseconds at the most."""

    rows: int
    bytes_written: int


class WriteReport(Value, frozen=True):
    """What one write did.

    Attributes:
        partitions: Every partition that was selected or received rows, in key order.
        rows_read: Rows that the source delivered.
        rows_quarantined: Of these, rows that could not be decoded or placed.
        rows_known: Of these, rows that the lake had already.
        schema: Schema of the feed now.
        requests: Store requests by class.
        removed: Partition keys that retention removed.
        notes: Lines for the run's log: what a person should know.
        totals: The feed after the write; None if nobody knows them.
        stayed: Of a replay: rows that are still in quarantine, by the reason why they were not landed.
        misfits: Values that did not fit the feed's schema contract, by the reason, where it lets rows be discarded.
        values_discarded: Of these, values that were left out of rows which were landed.
    """

    partitions: tuple[PartitionFacts, ...]
    rows_read: int
    rows_quarantined: int
    rows_known: int
    schema: pa.Schema
    requests: Mapping[str, int]
    removed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    totals: FeedTotals | None = None
    stayed: Mapping[str, int] = msgspec.field(default_factory=dict)
    misfits: Mapping[str, int] = msgspec.field(default_factory=dict)
    values_discarded: int = 0

    @property
    def rows_added(self) -> int:
        """Rows that this write added to the lake, net."""
        return sum(partition.rows_added for partition in self.partitions)

    def and_then(self, later: WriteReport) -> WriteReport:
        """Two writes of one feed as one."""
        counted = ("rows_read", "rows_quarantined", "rows_known", "values_discarded")
        known = {each.key: each for each in self.partitions}
        for each in later.partitions:
            known[each.key] = known[each.key].and_then(each) if each.key in known else each
        return replace(
            later,
            partitions=tuple(sorted(known.values(), key=lambda each: (len(each.key), each.key))),
            **{name: getattr(self, name) + getattr(later, name) for name in counted},
            notes=tuple(dict.fromkeys((*self.notes, *later.notes))),
            misfits=dict(Counter(self.misfits) + Counter(later.misfits)),
        )


@dataclass(frozen=True, slots=True)
class FailedCheck:
    """A check that rows of a feed did not pass.

    Attributes:
        check: Its name.
        level: ``error``, or ``warn``.
        partition: The partition that it is about; empty for all that an export wrote, or all of the feed.
        what: What is wrong, for a person.
    """

    check: str
    level: str
    partition: str
    what: str


class ExportResult(Value, frozen=True):
    """What an export of a feed came to.

    Attributes:
        feed: The feed's name.
        kind: Its kind.
        run_id: The Dagster run; empty if there was none, because the export could not even be planned.
        partitions: The partitions of the run, and others that received rows, in key order.
        rows_read: Rows that the source delivered.
        rows_quarantined: Of these, rows that could not be landed.
        seconds: Wall time.
        error: One line for a person; None on success: everything was landed, though checks may have failed.
        notes: What a person should know besides, a line each.
        checks: The checks that its rows did not pass, errors first.
        totals: The feed after it, where they were asked for and somebody knows them.
        folder: Of the feed, in the lake; empty: its kind's.
    """

    feed: str
    kind: str
    run_id: str = ""
    partitions: tuple[PartitionFacts, ...] = ()
    rows_read: int = 0
    rows_quarantined: int = 0
    seconds: float = 0.0
    error: str | None = None
    notes: tuple[str, ...] = ()
    checks: tuple[FailedCheck, ...] = ()
    totals: FeedTotals | None = None
    folder: str = ""

    @property
    def success(self) -> bool:
        """Whether everything was landed."""
        return self.error is None

    @property
    def rows_added(self) -> int:
        """Rows that the export added to the lake, net; of a table, against the version before."""
        return sum(partition.rows_added for partition in self.partitions)

    @property
    def readable(self) -> FeedTotals:
        """What readers of the feed get now: all of it, or of a table its newest version; zeros if nobody knows."""
        totals = self.totals or FeedTotals(0, 0, 0, 0, 0)
        if self.kind != "table" or not self.partitions or self.totals is None:
            return totals
        newest = self.partitions[-1]
        return FeedTotals(totals.partitions, newest.rows, newest.files, newest.small_files, newest.size_bytes)


class Problem(Value, frozen=True):
    """A file that is left in place and in no manifest.

    Attributes:
        key: The partition.
        name: The file, relative to the adopted folder.
        reason: What is wrong with it.
    """

    key: str
    name: str
    reason: str


@dataclass(slots=True)
class PagesCompared:
    """How many files' pages were compared with their checksums.

    Attributes:
        files: Files of which all pages that have checksums were compared.
        without: Files that seem to have none.
        not_compared: Files that were not compared, or not to their end: enough had been read, or time had run out, or
            pages cannot be walked.
        read_bytes: Bytes that were read for it.
    """

    files: int = 0
    without: int = 0
    not_compared: int = 0
    read_bytes: int = 0


class Deletion(Value, frozen=True):
    """Rows of a partition that a condition is true of, on their way out, or gone.

    Attributes:
        key: The partition.
        rows: How many rows the partition had.
        files: How many data files it had.
        matching: How many rows go, or went, by the name of their file; files without such a row are not in it.
        bytes_read: Size of the files with such rows, which are rewritten, or go if none of their rows stays.
        partition: The partition now; None if nothing was done.
    """

    key: str
    rows: int
    files: int
    matching: Mapping[str, int]
    bytes_read: int = 0
    partition: PartitionFacts | None = None

    @property
    def rows_deleted(self) -> int:
        """How many rows go, or went."""
        return sum(self.matching.values())


class FileChanges(Value, frozen=True):
    """Data files that joined a partition of an adopted table and left it, other than by a merge."""

    added: int = 0
    removed: int = 0


@dataclass(frozen=True, slots=True)
class Expired:
    """What a table let go of.

    Attributes:
        snapshots: Past states that nobody can read any more.
        files: Files that only those had, deleted.
        orphans: Files that nothing named, deleted.
        kept: Past states that stay: too young, or a branch or a tag of others keeps them.
    """

    snapshots: int = 0
    files: int = 0
    orphans: int = 0
    kept: int = 0

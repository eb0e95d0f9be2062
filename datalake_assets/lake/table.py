"""What a table of the lake is, whatever its format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import msgspec

from datalake_assets.core.facts import (
    Deletion,
    Expired,
    FeedTotals,
    PagesCompared,
    PartitionFacts,
    PlannedPartition,
    Problem,
    Progress,
    WriteReport,
)
from datalake_assets.core.values import Value
from datalake_assets.feed import Feed

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import pyarrow as pa
    import pyarrow.dataset as ds  # imports pandas

    from datalake_assets.core.batches import Batches, Decode, DecodeItems, ReadRequest
    from datalake_assets.core.compaction.compaction_report import CompactionProgress, CompactionReport
    from datalake_assets.core.compaction.plan import CompactionPlan, CompactionRequest
    from datalake_assets.core.report.figures import FeedStatistics  # only reports need it
    from datalake_assets.core.row_texts import QuarantinedRow
    from datalake_assets.core.rules import RuleCount
    from datalake_assets.core.verdicts import PartitionFooters
    from datalake_assets.policies import Rule

__all__ = [
    "Difference",
    "ExportPlan",
    "FeedTotals",
    "IsStale",
    "LakeTable",
    "Logged",
    "Progress",
    "Reconciliation",
    "Repair",
    "TableKeeper",
    "TableReader",
    "TableSnapshot",
    "TableWriter",
    "TellsItsLog",
    "WriteReport",
]


class ExportPlan(Value, frozen=True):
    """What one export of a feed reads, and which partitions it stands for.

    Attributes:
        partitions: Contiguous partition keys in time order (a table: its one version). The selection of the Dagster
            run; an ``offsets`` feed lands rows of other partitions too.
        request: What to ask the source for.
    """

    partitions: tuple[str, ...]
    request: ReadRequest


class Difference(Value, frozen=True):
    """Something in the lake that is not as the manifests say.

    Attributes:
        key: Partition key.
        what: ``missing``, ``size``, ``checksum``, ``rows``, ``unknown file``, ``pending``, ``garbage``, ``manifest``;
            of an adopted folder also ``changed``, ``new file``, ``unreadable``, ``schema``, ``damaged``.
        name: The file, or the manifest's key.
        detail: For a person.
    """

    key: str
    what: str
    name: str
    detail: str


@dataclass(slots=True)
class Reconciliation:
    """What a look at an adopted folder found, and what it took over; nothing, of a table that only we write.

    Attributes:
        partitions: Each partition's facts now, by key.
        changed: Keys of the partitions whose manifests changed.
        versions: By key, a text that changes when others change a partition, and not when its files are merged.
        added: Files that joined.
        rewritten: Files that are others than before under their name.
        removed: Files that left.
        problems: Data files that cannot be read, left in place and in no manifest.
        links: Links, which are left alone.
        left_out: Files that can be read and do not fit the others.
        damaged: Files of which a page's checksum is not that of its bytes; compaction leaves them alone.
        pages: How far the files' pages were compared with their checksums; None if nobody asked for it.
        other_files: Files that are no data files.
        waiting: Partitions that nobody can decide on yet, with the reason.
        footers_read: Footers that were read.
        footers_s: Seconds that it took.
        schema: The columns of all files that fit; None without any.
        why_not_compacted: Of a table of another format, why it is only looked at; empty if it is compacted, too.
    """

    partitions: dict[str, PartitionFacts] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    added: int = 0
    rewritten: int = 0
    removed: int = 0
    problems: list[Problem] = field(default_factory=list)
    links: list[Problem] = field(default_factory=list)
    left_out: list[Problem] = field(default_factory=list)
    damaged: list[Problem] = field(default_factory=list)
    pages: PagesCompared | None = None
    other_files: int = 0
    waiting: list[str] = field(default_factory=list)
    footers_read: int = 0
    footers_s: float = 0.0
    schema: pa.Schema | None = None
    why_not_compacted: str = ""


class Repair(Value, frozen=True):
    """What a repair did.

    Attributes:
        finished: Interrupted commits finished.
        undone: Interrupted commits undone.
        swept: Leftover staged files and garbage deleted.
        waiting: Partitions that nobody can decide on yet, with the reason.
        found: What others had changed.
    """

    finished: int = 0
    undone: int = 0
    swept: int = 0
    waiting: tuple[str, ...] = msgspec.field(default=())
    found: Reconciliation = msgspec.field(default_factory=Reconciliation)

    @property
    def reconciled(self) -> int:
        """Partitions whose files others had changed."""
        return len(self.found.changed)


class TableSnapshot(Protocol):
    """Some partitions of a table, each as it was committed when it was first asked for; all answers about it agree.

    An instance belongs to one thread.
    """

    @property
    def feed(self) -> Feed:
        """The feed whose data this is."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The partitions."""

    def only(self, key: str) -> TableSnapshot:
        """One of its partitions, as it is here."""

    def report(self, key: str) -> PartitionFacts | None:
        """A partition's facts; None if it has never had a commit."""

    def health(
        self, key: str, request: CompactionRequest, *, excluded: Mapping[str, str] | None = None
    ) -> PlannedPartition:
        """A partition's facts, and what its policy would do with its files.

        Args:
            key: The partition.
            request: The installation's compaction.
            excluded: Files that no compaction can take, by name, with the reason.
        """

    def footers(self, key: str) -> PartitionFooters:
        """Opens every file of a partition, counts rows and compares columns with the feed's.

        Raises:
            SnapshotExpired: A file went away meanwhile: take another snapshot.
        """

    def dataset(self, *, where: ds.Expression | None = None) -> ds.Dataset:
        """The committed files as an Arrow dataset; its partition columns (``year``, … or ``version``) come last.

        Args:
            where: Partitions that cannot match it are left out, unread.
        """

    def contents(self) -> Mapping[str, str]:
        """By partition that was ever written, a text that changes whenever its rows may have; equal texts, equal rows.

        Merging files changes it of adopted Iceberg and Delta tables alone.
        """

    def has_expired(self) -> bool:
        """Whether readers get other files by now: then a read that failed is worth repeating."""


class TableReader(Protocol):
    """A table for those who read it."""

    @property
    def feed(self) -> Feed:
        """The feed whose data this is."""

    @property
    def is_written_by_us(self) -> bool:
        """Whether nobody else writes it; else `TableKeeper.look_again` tells what others did, and Dagster doesn't."""

    @property
    def is_listed_plainly(self) -> bool:
        """Whether an engine that lists the files itself reads the rows and the columns of paths as `scan` does."""

    def partitions(self) -> tuple[str, ...]:
        """Keys of all partitions that were committed to and not removed, in time or version order."""

    def snapshot(self, partitions: Sequence[str] | None = None) -> TableSnapshot:
        """What is committed of some partitions; None: of all, or of the current version of a table with versions."""

    def report(self, key: str) -> PartitionFacts | None:
        """A partition's facts now; None if it has never had a commit."""

    def totals(self) -> FeedTotals | None:
        """The feed as a whole, at the last write: one request, however many partitions; None if nobody knows."""

    def figures(self, request: CompactionRequest, *, threads: Executor | None = None) -> FeedStatistics:
        """All partitions, with what compaction would do and what is remembered of the past; not the quarantine.

        Args:
            request: The installation's compaction.
            threads: What requests may be sent from; None: one by one.
        """

    def quarantined(self) -> Iterator[tuple[str, QuarantinedRow]]:
        """Rows that could not be landed, with their partition's path, oldest first; one row may come repeatedly."""

    def discarded(self) -> Iterator[tuple[str, QuarantinedRow]]:
        """Rows as they came that were landed without values which did not fit the feed's schema; likewise."""

    def scan(
        self,
        *,
        columns: Sequence[str] | None = None,
        where: ds.Expression | None = None,
        partitions: Sequence[str] | None = None,
    ) -> pa.RecordBatchReader:
        """Reads committed rows, exactly, per partition; filters prune partitions and row groups.

        A table with versions is read at its current version, without ``partitions``.

        Raises:
            SnapshotExpired: A file was removed after the first batch had been read.
        """

    def count_broken(
        self, rules: Sequence[Rule], keys: Sequence[str] | None, *, seen: TableSnapshot | None = None
    ) -> Iterator[tuple[Rule, RuleCount]]:
        """Counts the rows that break rules, per rule and partition; rules across the feed once, for all of it.

        Args:
            rules: The rules.
            keys: Partitions to look at; None: all of a stream or folder, the current version of a table.
            seen: A snapshot of these partitions: they are counted as it has them, where their files are still there.

        Raises:
            ConfigError: A rule names a column that isn't there, or its query cannot be run.
            SnapshotExpired: Files were replaced each time.
        """


class TableWriter(Protocol):
    """A table for those who export to it."""

    @property
    def feed(self) -> Feed:
        """The feed whose data this is."""

    def plan(self, partitions: Sequence[str] | None = None, *, new_epoch: bool = False) -> ExportPlan:
        """Says what to read.

        Args:
            partitions: Contiguous keys to export; None to catch up with the source. A table: None allocates its next
                version; a version allocated before and never committed may be named.
            new_epoch: Accept that the source was recreated or lost rows.

        Raises:
            ConfigError: A key is not one of this feed's, or lies before its start or in the future; or nothing is
                exported to it.
        """

    def write(
        self,
        batches: Batches,
        *,
        partitions: Sequence[str],
        run_id: str,
        allow_shrink: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> WriteReport:
        """Lands ``batches`` exactly once, commits, and acknowledges.

        Raises:
            ConfigError: Nothing is exported to it.
            SourceError: Nothing was committed (an ``offsets`` feed: in no partition where it is not complete).
            LakeError: Nothing was committed, or what was committed stays and a repetition adds only the rest.
        """

    def written(self, partitions: Sequence[str]) -> TableSnapshot:
        """Some partitions as the last `write` of this instance left them, as far as it saw them: nothing is read again.

        To be used at once, as every snapshot.
        """

    def check_replay(self) -> None:
        """Refuses feeds whose rows in quarantine can't be landed later: they come anew with each pull, or aren't ours.

        Raises:
            ConfigError: It is such a feed; says how its rows come.
        """

    def replay(
        self,
        batches: Batches,
        decode: Decode | None,
        *,
        decode_items: DecodeItems | None = None,
        run_id: str = "",
    ) -> WriteReport:
        """Lands the rows in quarantine that fit the feed as it is now, each exactly once, and takes them out.

        Args:
            batches: A read of the source; asked for its columns where the table does not know them, and not iterated.
            decode: Decodes rows that the source's own decoder refused; None leaves them.
            decode_items: The same of a feed that is read item by item.
            run_id: Written into the history.

        Raises:
            ConfigError: As `check_replay`.
            SourceError: The source's columns are needed, and it failed.
            LakeError: The store failed; what was committed stays, and a repetition does the rest.
        """


class TableKeeper(Protocol):
    """A table for those who look after it."""

    @property
    def feed(self) -> Feed:
        """The feed whose data this is."""

    def look_again(self, *, run_id: str = "", on_progress: Callable[[int, int], None] | None = None) -> Reconciliation:
        """Takes over what others changed; of a table that only we write there is nothing to see."""

    def removed(self, keys: Iterable[str]) -> tuple[str, ...]:
        """The partitions among these that retention removed; one that was never committed does not count."""

    def compaction_plan(
        self, key: str, request: CompactionRequest, *, excluded: Mapping[str, str] | None = None
    ) -> CompactionPlan:
        """What `compact` would merge in a partition, what it would leave alone and why; changes nothing.

        Args:
            key: The partition.
            request: What is asked for.
            excluded: Files that earlier compactions could not take, by name, with the reason; `compact` tries them
                again.
        """

    def compact(
        self,
        key: str,
        request: CompactionRequest,
        *,
        run_id: str = "",
        on_plan: Callable[[CompactionPlan], None] | None = None,
        on_progress: Callable[[CompactionProgress], None] | None = None,
    ) -> CompactionReport:
        """Merges the small files of a partition until nothing is left to merge; rows and position stay as they are.

        Files that cannot be read or whose schema does not fit are left in place and reported. Appends may go on
        meanwhile.

        Args:
            key: The partition.
            request: What is asked for.
            run_id: The Dagster run; empty if there is none.
            on_plan: Called with the plan before the work begins.
            on_progress: Called with what is done so far.

        Raises:
            LakeError: The store failed; what was committed stays, and a repetition does the rest.
        """

    def deletion_plan(self, key: str, where: str) -> Deletion:
        """What `delete_rows` would take out of which files of a partition; changes nothing."""

    def delete_rows(self, key: str, where: str, *, run_id: str = "") -> Deletion:
        """Takes the rows out of a partition that an SQL condition is true of, in one commit; its position stays.

        Files without such rows are not touched. Writers and compactions may go on meanwhile.

        Raises:
            ConfigError: It is not a condition on the feed's rows, cannot be evaluated, or the rows are not ours.
            LakeError: The store failed; all of these rows are there or none, and a repetition does the rest.
        """

    def verify(self, *, deep: bool = False, partitions: Sequence[str] | None = None) -> Iterator[Difference]:
        """Compares what is committed with the objects that are there.

        What a writer or a compaction changes meanwhile may show as a difference, and is none at a second look.

        Args:
            deep: Read every byte, and compare rows and checksums.
            partitions: List only the folders of these; None lists the whole feed.
        """

    def repair(self, *, run_id: str = "") -> Repair:
        """Finishes or undoes interrupted commits, sweeps what they left, and takes over what others changed."""

    @property
    def past_stays(self) -> timedelta | None:
        """How long a past state, and what only it has, can still be read; None: it goes with the next commit."""

    def expire(self, *, all_past: bool = False) -> Expired:
        """Lets go of past states that are older than the table keeps them, and of their files; rows stay.

        With ``all_past`` of younger ones too, unless a branch or a tag keeps them.

        Raises:
            LakeError: The store or the catalog failed; a repetition does the rest.
        """

    def rebuild_summary(self, figures: FeedStatistics) -> None:
        """Writes anew what `TableReader.totals` and people read, from the `TableReader.figures` of all partitions."""

    def purge(self) -> int:
        """Deletes everything of it in the lake, rows first, and nothing that others wrote; repeat it if interrupted.

        Returns:
            How many objects were deleted.
        """


@runtime_checkable
class IsStale(Protocol):
    """A table that is made of others of the lake, and can tell whether they have changed since."""

    def is_stale(self) -> bool:
        """Whether something would be another if it were made now: some requests for each input and partition."""


class Logged(Value, frozen=True):
    """A table whose own log says which files count, for engines that read it by that.

    Attributes:
        format: ``iceberg`` or ``delta``.
        location: Address of its folder.
        version: Another one after each commit.
        files: Addresses of its files now, whose rows are the table's if they are read plainly, columns by their names.
        why_not_plain: Why its files cannot be read plainly; empty if they can.
        metadata: Of Iceberg: address of the file that says what the table is now.
        catalog: Of Iceberg: the catalog that it is kept in, by the word of the settings.
        hive_columns: Columns whose values stand in the files' paths alone.
    """

    format: Literal["iceberg", "delta"]
    location: str
    version: str
    files: tuple[str, ...] = ()
    why_not_plain: str = ""
    metadata: str = ""
    catalog: str = ""
    hive_columns: tuple[str, ...] = ()


@runtime_checkable
class TellsItsLog(Protocol):
    """A table of a format with a log of its own."""

    def logged(self) -> Logged | None:
        """What the log says now; None if the table was never written."""


class LakeTable(TableReader, TableWriter, TableKeeper, Protocol):
    """One feed's data in the lake. Safe to use from several processes at once; an instance belongs to one thread."""

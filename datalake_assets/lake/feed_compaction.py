"""Compaction of a feed: which partitions, in what order, and what became of each. The command and the job share it."""

from __future__ import annotations

import logging
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

from datalake_assets.core.compaction.compaction_report import CompactionProgress, CompactionReport
from datalake_assets.core.compaction.plan import CompactionPlan, CompactionRequest, LeftAlone
from datalake_assets.core.facts import PartitionFacts, Problem
from datalake_assets.engines import open_engine
from datalake_assets.engines.base import Cancelled
from datalake_assets.errors import ConfigError, DatalakeError, unforeseen_text
from datalake_assets.lake.table import LakeTable, TableKeeper, TableReader
from datalake_assets.policies import MIB
from datalake_assets.settings import Settings

__all__ = [
    "Compacted",
    "Rehearsed",
    "Rehearses",
    "by_reason",
    "compact_partition",
    "compact_partitions",
    "kernel_of",
    "missing_partitions",
    "most_small_files_first",
    "rehearsed",
    "request_of",
    "unusable",
]

logger = logging.getLogger(__name__)

#: Partitions whose facts are read at once.
THREADS = 8
#: Partitions that are planned and committed at once, while others rewrite their files.
PARTITIONS_AT_ONCE = 8
_OWN_FIGURE = re.compile(r"^is [^:]+: ")


@dataclass(frozen=True, slots=True)
class Compacted:
    """What became of one partition: a report, or an error.

    Attributes:
        key: Partition key.
        report: What was done; None if it failed as a whole.
        error: Why it failed, as a whole or for some files; None if it didn't.
    """

    key: str
    report: CompactionReport | None = None
    error: DatalakeError | None = None

    @property
    def changed(self) -> bool:
        """Whether files were rewritten."""
        return self.report is not None and self.report.files_compacted > 0


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """What a rehearsal of a compaction came to.

    Attributes:
        plan: What would be merged and left alone.
        tried_bytes: Bytes of the files whose merge was tried.
        untried_bytes: Bytes of those whose merge was not, since enough was read.
    """

    plan: CompactionPlan
    tried_bytes: int = 0
    untried_bytes: int = 0


@runtime_checkable
class Rehearses(Protocol):
    """A table that can say more than a plan of what a compaction would do: it tries, and keeps nothing."""

    def rehearsed_partitions(self) -> tuple[str, ...]:
        """The partitions that a compaction would find now."""

    def rehearsed_problems(self) -> Sequence[Problem]:
        """Data files that are in no partition's manifest, since they cannot be read or named."""

    def rehearse(self, key: str, request: CompactionRequest, *, most_bytes: int) -> Rehearsed:
        """Plans the compaction of a partition as it is now, and tries to merge what the plan names; changes nothing.

        Args:
            key: The partition.
            request: What is asked for.
            most_bytes: Bytes of files that are tried at the most.
        """


def request_of(
    settings: Settings, *, force: bool = False, target_file_size_mb: int | None = None, max_files: int | None = None
) -> CompactionRequest:
    """What a command or a run asks for, in an installation; megabytes are binary ones, as in a feed's format."""
    return CompactionRequest(
        environment=settings.env,
        force=force,
        target_file_bytes=None if target_file_size_mb is None else target_file_size_mb * MIB,
        max_files=max_files,
        memory_bytes=settings.compaction_memory_mb * MIB,
        engine=settings.engine,
    )


def missing_partitions(table: TableReader, keys: Iterable[str]) -> Mapping[str, ConfigError]:
    """The named partitions that the feed never had; one that retention has emptied is as good as any."""
    known = table.partitions()
    held = f"it has {len(known):,}, from {known[0]!r} to {known[-1]!r}" if known else "it has none yet"
    missing = {}
    for key in sorted(set(keys).difference(known)):
        try:
            if table.report(key) is None:
                missing[key] = ConfigError(f"feed {table.feed.name!r} has no partition {key!r}; {held}")
        except ConfigError as error:  # no key of such a feed at all
            missing[key] = error
    return missing


def most_small_files_first(
    open_table: Callable[[], TableReader], keys: Sequence[str], *, known: Mapping[str, PartitionFacts]
) -> tuple[str, ...]:
    """The partitions in the order in which to compact them; one request for each that is not known.

    Args:
        open_table: Opens the feed's table; called once per partition, in several threads.
        keys: Partition keys.
        known: Facts of some of them; the others' are read.
    """
    if len(keys) < 2:  # noqa: PLR2004  nothing to order
        return tuple(keys)
    with ThreadPoolExecutor(THREADS) as pool:
        reports = pool.map(lambda key: known.get(key) or _report(open_table(), key), keys)
        small = {key: report.small_files if report else 0 for key, report in zip(keys, reports, strict=True)}
    return tuple(sorted(keys, key=lambda key: -small[key]))


def compact_partition(
    table: TableKeeper,
    key: str,
    request: CompactionRequest,
    *,
    run_id: str = "",
    on_plan: Callable[[CompactionPlan], None] | None = None,
    on_progress: Callable[[CompactionProgress], None] | None = None,
) -> Compacted:
    """Compacts a partition; if that fails, its error is the outcome, and no reason to leave other partitions alone.

    Args:
        table: The feed's data.
        key: The partition.
        request: What is asked for.
        run_id: The Dagster run; empty if there is none.
        on_plan: Called with the plan before the work begins.
        on_progress: Called with what is done so far.
    """
    try:
        report = table.compact(key, request, run_id=run_id, on_plan=on_plan, on_progress=on_progress)
    except DatalakeError as error:
        return Compacted(key, error=error)
    except Cancelled:
        raise
    except Exception as error:
        logger.exception("compaction of %s %s failed", table.feed.path, key)
        return Compacted(key, error=DatalakeError(unforeseen_text(error)))
    return Compacted(key, report, _failure(report.failed) if report.failed else None)


def compact_partitions(
    open_table: Callable[[], TableKeeper],
    keys: Sequence[str],
    request: CompactionRequest,
    *,
    run_id: str = "",
    on_begin: Callable[[str], None] = lambda _: None,
    on_plan: Callable[[str, CompactionPlan], None] = lambda _key, _plan: None,
    on_progress: Callable[[str, CompactionProgress], None] = lambda _key, _now: None,
) -> Generator[Compacted]:
    """Compacts partitions, and says of each what became of it, when it did.

    One after another, each with all of this process; several at once where others do the rewriting, as many groups as a
    cluster has room for. Where this is closed, those under way end after their present group.

    Args:
        open_table: Opens the feed's table; called once per thread.
        keys: Partition keys.
        request: What is asked for.
        run_id: The Dagster run; empty if there is none.
        on_begin: Called with each partition's key before anything is done to it, in any thread.
        on_plan: Called with its plan: before its work begins, or, of several at once, before what became of it is said.
        on_progress: Called with what is done of it so far, in any thread.
    """
    stopped, local = threading.Event(), threading.local()

    def progress(key: str, now: CompactionProgress) -> None:
        if stopped.is_set():
            raise Cancelled
        on_progress(key, now)

    def compacted(key: str, tell: Callable[[CompactionPlan], None]) -> Compacted:
        if not hasattr(local, "table"):
            local.table = open_table()
        on_begin(key)
        return compact_partition(
            local.table,
            key,
            request,
            run_id=run_id,
            on_plan=tell,
            on_progress=partial(progress, key),
        )

    if len(keys) < 2 or not open_engine(request.engine).is_remote:  # noqa: PLR2004  one is not several
        yield from (compacted(key, partial(on_plan, key)) for key in keys)
        return
    plans: dict[str, CompactionPlan] = {}
    with ThreadPoolExecutor(PARTITIONS_AT_ONCE, thread_name_prefix="partition") as pool:
        jobs = [pool.submit(compacted, key, partial(plans.__setitem__, key)) for key in keys]
        try:
            for job in as_completed(jobs):
                done = job.result()
                if done.key in plans:
                    on_plan(done.key, plans[done.key])
                yield done
        finally:
            stopped.set()
            pool.shutdown(cancel_futures=True)


def rehearsed(table: LakeTable, key: str, request: CompactionRequest, *, most_bytes: int) -> Rehearsed:
    """What a compaction of a partition would do; by its plan alone, of a table that cannot try."""
    if isinstance(table, Rehearses):
        return table.rehearse(key, request, most_bytes=most_bytes)
    return Rehearsed(table.compaction_plan(key, request))


def kernel_of(reports: Iterable[CompactionReport]) -> str:
    """The kernel of several compactions: ``concat``, ``reencode``, ``mixed``, or empty if nothing was done."""
    kernels = {report.kernel for report in reports} - {""}
    return kernels.pop() if len(kernels) == 1 else "mixed" if kernels else ""


def by_reason(left_alone: Iterable[LeftAlone]) -> Mapping[str, Sequence[str]]:
    """The names of files that were left alone by the reason why; the most frequent reason first.

    Reasons that differ only in the file's own figure (``is 130 MB: …``) count as one, without it.
    """
    found = defaultdict(list)
    for each in left_alone:
        found[_OWN_FIGURE.sub("", each.reason)].append(each)
    # a file that is alone with its reason keeps its figure
    named = {each[0].reason if len(each) == 1 else reason: [one.name for one in each] for reason, each in found.items()}
    return dict(sorted(named.items(), key=lambda item: -len(item[1])))


def unusable(left_alone: Iterable[LeftAlone]) -> list[LeftAlone]:
    """The files that no rewrite could take, because they cannot be read or fit no other: a person should see them."""
    return [each for each in left_alone if each.unusable]


def _report(table: TableReader, key: str) -> PartitionFacts | None:
    """The partition's facts; None too if the manifest cannot be read: its compaction reports that, and goes last."""
    try:
        return table.report(key)
    except Exception:  # noqa: BLE001  this only orders partitions: what is wrong with one, its compaction reports
        return None


def _failure(failed: Sequence[LeftAlone]) -> DatalakeError:
    number = "1 file was" if len(failed) == 1 else f"{len(failed):,} files were"
    return DatalakeError(f"{number} not merged: {failed[0].name}: {failed[0].reason}; the others were")

"""An adopted folder as a table of the lake: scanned, verified, repaired and compacted where it lies."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from datalake_assets.core.compaction.compaction_report import CompactionProgress, CompactionReport
from datalake_assets.core.compaction.cost import estimate_of
from datalake_assets.core.compaction.plan import CompactionPlan, CompactionRequest, LeftAlone
from datalake_assets.core.facts import Problem
from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.wording import name_text
from datalake_assets.errors import CorruptLake, LakeUnavailable
from datalake_assets.feed import Feed
from datalake_assets.lake import compaction
from datalake_assets.lake.adopted.footers import Footers
from datalake_assets.lake.adopted.listing import Listing, list_folder
from datalake_assets.lake.adopted.marks import SummaryFiles, TableMarks
from datalake_assets.lake.adopted.owners import check_ownership
from datalake_assets.lake.adopted.reconcile import (
    foresee,
    is_same_file,
    looks_copied,
    reconcile,
    reconcile_partition,
)
from datalake_assets.lake.adopted.table_of_others import TableOfOthers
from datalake_assets.lake.compaction_rehearsal import rehearse
from datalake_assets.lake.feed_compaction import Rehearsed
from datalake_assets.lake.inspection import content, known_names, repair, still_true, unfinished
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import ObjectInfo, Store
from datalake_assets.lake.store.posix import scan_entries
from datalake_assets.lake.table import Difference, Reconciliation, Repair

__all__ = ["AdoptedTable"]


class AdoptedTable(TableOfOthers):
    """An adopted folder: nothing is exported to it, and its files are listed anew before they are judged."""

    def __init__(self, store: Store, feed: Feed) -> None:
        super().__init__(store, feed)
        self._marks, self._summaries = TableMarks(self._folder), SummaryFiles(self._folder)

    @property
    def is_listed_plainly(self) -> bool:
        """Implements `LakeTable`: engines would expand some names, and give the columns of paths types of their own."""
        return False

    def look_again(self, *, run_id: str = "", on_progress: Callable[[int, int], None] | None = None) -> Reconciliation:
        """Implements `LakeTable`: brings the manifests in step with the folder's files."""
        return reconcile(self._folder, run_id=run_id, on_progress=on_progress)

    def compaction_plan(
        self, key: str, request: CompactionRequest, *, excluded: Mapping[str, str] | None = None
    ) -> CompactionPlan:
        """Implements `LakeTable`: plans with the files that were there at the last look."""
        excluded = {**self._linked_in(key), **(excluded or {})}
        return self._kept_by_summaries(key, super().compaction_plan(key, request, excluded=excluded))

    def rehearsed_partitions(self) -> tuple[str, ...]:
        """Implements `Rehearses`: folders without a manifest, or with an unreadable one, are among them."""
        _, manifests = self._foreseen
        unreadable = set(self._folder.partition_keys()) - manifests.keys()
        return tuple(sorted({key for key, each in manifests.items() if each.files or each.generation} | unreadable))

    def rehearse(self, key: str, request: CompactionRequest, *, most_bytes: int) -> Rehearsed:
        """Implements `Rehearses`: with the files that are there now."""
        _Guard(self._folder, key, self._marks, self._summaries).check_still_ours()
        found, manifests = self._foreseen
        done = rehearse(
            self._folder,
            key,
            request,
            manifest=manifests.get(key) or self._folder.log(key).load().manifest,
            most_bytes=most_bytes,
            excluded=self._linked_in(key),
        )
        plan = self._kept_by_summaries(key, done.plan)
        return replace(done, plan=replace(plan, left_alone=(*plan.left_alone, *_passed_over(found, key))))

    def rehearsed_problems(self) -> Sequence[Problem]:
        """Implements `Rehearses`."""
        return self._foreseen[0].problems

    @cached_property
    def _foreseen(self) -> tuple[Reconciliation, Mapping[str, Manifest]]:
        return foresee(self._folder)

    def _kept_by_summaries(self, key: str, plan: CompactionPlan) -> CompactionPlan:
        """The plan without what summary files forbid to merge."""
        reason = self._summaries.refusal(key) if plan.groups else ""
        if not reason:
            return plan
        estimate = estimate_of([], files=plan.estimate.files_before)
        merged = tuple(LeftAlone(file.name, reason) for group in plan.groups for file in group.files)
        return replace(plan, groups=(), left_alone=(*plan.left_alone, *merged), estimate=estimate)

    def compact(
        self,
        key: str,
        request: CompactionRequest,
        *,
        run_id: str = "",
        on_plan: Callable[[CompactionPlan], None] | None = None,
        on_progress: Callable[[CompactionProgress], None] | None = None,
    ) -> CompactionReport:
        """Implements `LakeTable`: looks at the partition's files first.

        Raises:
            FolderTaken: The folder is another's by now.
            ConfigError: It belongs to a table of another format by now, or a summary file names what would be merged.
            LakeUnavailable: Files cannot be staged beside it.
            LakeError: The store failed; what was committed stays, and a repetition does the rest.
        """
        guard = _Guard(self._folder, key, self._marks, self._summaries)
        guard.check_still_ours()
        check_staging(self._folder, key)
        found, base = reconcile_partition(self._folder, key, run_id=run_id)
        report = compaction.compact(
            self._folder,
            key,
            request,
            run_id=run_id,
            base=base,
            excluded=self._linked_in(key),
            guard=guard,
            on_plan=on_plan,
            on_progress=on_progress,
        )
        passed = (*_passed_over(found, key),)
        unread = tuple(each for each in passed if each.unusable)
        return replace(report, skipped=(*report.skipped, *passed), blocked=(*report.blocked, *unread))

    def _linked_in(self, key: str) -> dict[str, str]:
        """The files of a partition that links in the folder point to, with the reason why they must stay."""
        above = f"{self._folder.data_folder(key)}/"
        return {
            target.removeprefix(above): f"the link {link!r} points to it"
            for target, link in self._linked.items()
            if target.startswith(above) and "/" not in target.removeprefix(above)
        }

    @cached_property
    def _linked(self) -> dict[str, str]:
        """By key, the files below the folder that links in it point to, with the link's name; only disks have links."""
        store = self._folder.data_store
        if "://" in store.uri:
            return {}
        root, links = Path(store.path("")).resolve(), {}
        for entry in scan_entries(store.path(self._folder.data_root)):
            target = Path(entry.path).resolve() if entry.is_symlink() else root
            if target != root and target.is_relative_to(root):
                links[target.relative_to(root).as_posix()] = entry.name
        return links

    def verify(self, *, deep: bool = False, partitions: Sequence[str] | None = None) -> Iterator[Difference]:
        """Implements `LakeTable`: files that cannot be read are differences, each time."""
        if partitions is None:
            yield from _verify(self._folder, list_folder(self._folder), self._folder.partition_keys(), deep=deep)
        for key in partitions or ():
            yield from _verify(self._folder, list_folder(self._folder, key), [key], deep=deep)

    def repair(self, *, run_id: str = "") -> Repair:
        """Implements `LakeTable`."""
        done = repair(self._folder)  # first, or the look would finish commits that nobody counts
        found = reconcile(self._folder, run_id=run_id)
        waiting = tuple(dict.fromkeys((*done.waiting, *(f"{self.feed.path}/{each}" for each in found.waiting))))
        return replace(done, waiting=waiting, found=found)


@dataclass(frozen=True, slots=True)
class _Guard:
    """Sees to it that the folder is still ours to compact; implements `Guard`."""

    folder: FeedFolder
    key: str
    marks: TableMarks
    summaries: SummaryFiles

    def check_still_ours(self) -> None:
        check_ownership(self.folder.store, self.folder.feed)
        self.marks.check(self.key)

    def before_rewrite(self) -> None:
        self.folder.claim.renew()  # before much is read in vain
        self.summaries.check(self.key)

    def before_commit(self) -> None:
        self.check_still_ours()
        self.summaries.remove(self.key)


def _passed_over(found: Reconciliation, key: str) -> Iterator[LeftAlone]:
    """The files of a partition that are in no manifest, though they look like data."""
    for each in found.problems:
        if each.key == name_text(key):
            yield LeftAlone(each.name.rpartition("/")[2], f"cannot be read: {each.reason}", unusable=True)
    for each in found.links:
        if each.key == name_text(key):
            yield LeftAlone(each.name.rpartition("/")[2], each.reason)


def check_staging(folder: FeedFolder, key: str) -> None:
    """Refuses to compact where a staged file could not be published: found out before anything is prepared.

    Raises:
        LakeUnavailable: The partition's folder is on another device than its parent's, behind a link, or nothing can
            be written.
    """
    store = folder.data_store
    with store.stage(f"{folder.data_folder(key)}/probe"):
        pass
    here, root = Path(store.path(folder.data_folder(key))), Path(store.path(""))
    if "://" in store.uri or not here.is_dir():
        return
    if here.resolve() != root.resolve() / folder.data_folder(key):
        raise LakeUnavailable(str(here), "it is a link, or lies behind one, by now", cure="adopt what it points to")
    if _device(here) != _device(root):
        reason = f"it is on another device than {root}, where files are staged"
        raise LakeUnavailable(str(here), reason, cure="adopt a folder below the mount point instead")


def _device(path: Path) -> int:
    return path.stat().st_dev


def _verify(folder: FeedFolder, listing: Listing, keys: Iterable[str], *, deep: bool) -> Iterator[Difference]:
    unknown, seen = dict[str, Mapping[str, ObjectInfo]](), set[str]()
    again = _Again(folder, listing)
    for key in keys:
        log = folder.log(key)
        seen.add(key)
        try:
            manifest = log.load().manifest
        except CorruptLake as error:  # nobody knows which of its files it names
            yield Difference(key, "manifest", log.manifest_key, error.reason)
            continue
        yield from unfinished(key, manifest, log.manifest_key)
        there = listing.partitions.get(key, {})
        for file in manifest.files:
            yield from still_true(log, file, _file(again, key, file, there.get(file.name), deep=deep))
        known = known_names(manifest)
        if left := {name: info for name, info in there.items() if name not in known}:
            unknown[key] = left
    unknown |= {key: listing.partitions[key] for key in listing.partitions.keys() - seen}
    yield from _unknown(folder, listing, unknown)


class _Again:
    """Looks again at files whose ETags are not as their manifests say."""

    def __init__(self, folder: FeedFolder, listing: Listing) -> None:
        self.folder, self._listing, self._footers = folder, listing, Footers(folder)
        self._copied: bool | None = None

    def is_same(self, key: str, file: DataFile, info: ObjectInfo) -> bool:
        """Whether a file is the one that its manifest names, as one of a copied folder is."""
        if self._copied is None:
            self._copied = looks_copied(self._named())
        found = self._footers.read([key], lambda _: [info]).of(key).get(file.name)
        return found is not None and is_same_file(self.folder, key, file, found, copied=self._copied)

    def _named(self) -> Iterator[tuple[DataFile, ObjectInfo]]:
        for key, there in self._listing.partitions.items():
            try:
                files = self.folder.log(key).load().manifest.files
            except CorruptLake:  # that is a difference of its own
                continue
            yield from ((file, there[file.name]) for file in files if file.name in there)


def _file(again: _Again, key: str, file: DataFile, info: ObjectInfo | None, *, deep: bool) -> Iterator[Difference]:
    folder = again.folder
    name, cure = folder.log(key).key_of(file.name), f"'datalake repair {folder.feed.name}' takes that over"
    info = info or folder.data_store.head(name)  # it may have been merged since the listing
    if info is None:
        yield Difference(key, "missing", name, f"others deleted it, with {file.rows} rows; {cure}")
    elif info.etag != file.etag and not again.is_same(key, file, info):
        yield Difference(key, "changed", name, f"others wrote it anew; {cure}")
    else:
        if file.left_out:
            yield Difference(key, "schema", name, f"it is left out of scans and compaction: {file.left_out}")
        if file.damaged and not deep:
            yield Difference(key, "damaged", name, f"it is left out of compaction: {file.damaged}")
        if deep:
            yield from content(folder, key, file, name)


def _unknown(
    folder: FeedFolder, listing: Listing, unknown: Mapping[str, Mapping[str, ObjectInfo]]
) -> Iterator[Difference]:
    read = Footers(folder).read(unknown, lambda key: [*unknown[key].values()])
    merged = {folder.log(key).key_of(name) for key in unknown for name in _known_by_now(folder, key)}
    for key, name in sorted((key, each.file.name) for key, each in read.found()):
        detail = f"it is in no manifest yet; 'datalake repair {folder.feed.name}' takes it in"
        if (where := folder.log(key).key_of(name)) not in merged:
            yield Difference(key, "new file", where, detail)
    for each in sorted((*listing.problems, *read.problems), key=lambda problem: problem.name):
        if (where := f"{folder.data_root}/{each.name}") not in merged:
            yield Difference(each.key, "unreadable", where, each.reason)


def _known_by_now(folder: FeedFolder, key: str) -> set[str]:
    """The files of a partition that others may have taken in and merged since its manifest was read."""
    try:
        return known_names(folder.log(key).load().manifest)
    except CorruptLake:
        return set()

"""Manifests brought in step with an adopted folder: new files join, vanished ones leave, others are read anew.

The order matters. Manifests are settled and read first, then the folder is listed, and each partition is changed by
one compare-and-swap on the manifest as it was read: so no commit of ours can lie between, and a listing that is older
than a compaction is never taken for the truth. It is one commit per partition, of the kind ``reconcile``.

An ETag is a shortcut: while it is the same, so is the file. In a lake that was copied to another bucket or machine,
with its folders, ETags differ, and every file is the same. Then name, size and checksum decide. Files of other writers
have no checksum in a manifest; for them size and footer decide, if their ETags could differ by a copy alone:

- S3's does if one of the two is of an upload in parts; two of whole objects are digests of their bytes.
- On a disk it does if the time is the same, or if no file of the folder has the time and inode that it had: of a folder
  where some have them, the others were written anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import msgspec

from datalake_assets.core.facts import Problem
from datalake_assets.core.feed_state import FeedState
from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.schema import schema_from_json, schema_to_json
from datalake_assets.errors import AmbiguousWrite, CorruptLake, PreconditionFailed, TransientStoreError
from datalake_assets.lake.adopted.footers import Footers, Read
from datalake_assets.lake.adopted.listing import FolderSchema, fold, list_folder
from datalake_assets.lake.commit import Loaded
from datalake_assets.lake.file_identity import differ_by_copy, has_checksum, is_on_disk
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import ObjectInfo
from datalake_assets.lake.store.swap import retried
from datalake_assets.lake.table import Reconciliation
from datalake_assets.parquet.adopted_footer import AdoptedFooter
from datalake_assets.parquet.schemas import Incompatible, unify_schemas

__all__ = ["foresee", "is_same_file", "looks_copied", "reconcile", "reconcile_partition"]

logger = logging.getLogger(__name__)

#: Files that all have another ETag before a folder counts as copied: a single one is rewritten often enough.
LEAST = 2


def looks_copied(known: Iterable[tuple[DataFile, ObjectInfo]]) -> bool:
    """Whether a folder on a disk seems to be a copy of the one that its manifests describe.

    Args:
        known: Files of its manifests that are there by name, with what is there.
    """
    files = 0
    for file, info in known:
        if info.etag == file.etag or info.size_bytes != file.size_bytes or not is_on_disk(info.etag):
            return False
        files += 1
    return files >= LEAST


def is_same_file(folder: FeedFolder, key: str, file: DataFile, found: AdoptedFooter, *, copied: bool) -> bool:
    """Whether what is there under a file's name, with another ETag, is that file.

    Args:
        folder: The feed.
        key: The partition.
        file: As the manifest has it.
        found: What is there.
        copied: The folder looks like a copy.
    """
    now = found.file
    if (now.size_bytes, now.rows) != (file.size_bytes, file.rows):
        return False
    if file.checksum:
        return has_checksum(folder.data_store, folder.log(key).key_of(file.name), file.checksum, etag=now.etag)
    may_be_copy = copied or differ_by_copy(file.etag, now.etag)
    return may_be_copy and (now.min_time, now.max_time) == (file.min_time, file.max_time)


#: Manifests that are read or written at once.
THREADS = 16
#: Rounds for partitions that others are working on.
ATTEMPTS = 5


def reconcile(
    folder: FeedFolder,
    *,
    only: str | None = None,
    run_id: str = "",
    footers: Footers | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Reconciliation:
    """Brings the manifests of an adopted folder in step with its files; idempotent.

    Args:
        folder: The feed.
        only: The one partition to look at; None for all.
        run_id: The run that looks.
        footers: Those that were read already.
        on_progress: Called with how many footers were read, and of how many.

    Raises:
        ConfigError: The folder became a table of a format with a log of its own.
        LakeError: The lake or the folder cannot be read or written.
    """
    return _Reconciler(folder, only, run_id, footers or Footers(folder), on_progress).run()


def reconcile_partition(folder: FeedFolder, key: str, *, run_id: str = "") -> tuple[Reconciliation, Loaded | None]:
    """Brings one partition in step with its files, by a listing of its folder alone; idempotent.

    Returns:
        What was found, and the partition's settled manifest; None if nobody can settle it now.
    """
    reconciler = _Reconciler(folder, key, run_id, Footers(folder), None)
    return reconciler.run(), reconciler.settled.get(key)


def foresee(folder: FeedFolder) -> tuple[Reconciliation, Mapping[str, Manifest]]:
    """What a look at a folder would find and take over, and the manifests after it; changes nothing.

    Commits that are under way count as what they have done so far. A partition whose manifest cannot be read waits.
    """
    return _Reconciler(folder, None, "", Footers(folder), None).foresee()


@dataclass(frozen=True, slots=True)
class _ListedPartition:
    """One partition: its settled manifest, and the files that were there after it had been read."""

    loaded: Loaded
    there: Mapping[str, ObjectInfo]
    known: Mapping[str, DataFile]

    @property
    def named(self) -> Iterator[tuple[DataFile, ObjectInfo]]:
        """Files of the manifest that are there by name."""
        return ((file, self.there[file.name]) for file in self.loaded.manifest.files if file.name in self.there)

    @classmethod
    def of(cls, loaded: Loaded, there: Mapping[str, ObjectInfo], *, pages_compared: bool = False) -> _ListedPartition:
        """Finds those files of the manifest that are still what they were."""
        # a file that was mended may have the ETag of the damaged one
        known = {
            file.name: file
            for file in loaded.manifest.files
            if (info := there.get(file.name)) is not None
            and info.etag == file.etag
            and not (pages_compared and file.damaged)
        }
        return cls(loaded, there, known)

    @property
    def unknown(self) -> Sequence[ObjectInfo]:
        """The files that the manifest does not name as they are."""
        if len(self.known) == len(self.there):
            return ()
        return [info for name, info in self.there.items() if name not in self.known]

    @property
    def is_unchanged(self) -> bool:
        """Whether the manifest names the files that are there, each as it is."""
        return len(self.known) == len(self.there) == len(self.loaded.manifest.files)


class _Looks(Mapping[str, _ListedPartition]):
    """All partitions of a look, each made when it is asked for: of many files, only one partition's are held.

    Args:
        loaded: Settled manifests by key; None for those that nobody can settle now.
        listing: What was there after these had been read.
        wanted: The partitions to look at; None: all.
        pages_compared: Whether files that are damaged are looked at once more.
        under_way: Whether files of commits that are under way count as if they were not there.
    """

    def __init__(
        self,
        loaded: Mapping[str, Loaded | None],
        listing: Mapping[str, Mapping[str, ObjectInfo]],
        *,
        wanted: Collection[str] | None = None,
        pages_compared: bool = False,
        under_way: bool = False,
    ) -> None:
        self._loaded, self._listing = loaded, listing
        self._pages_compared, self._under_way = pages_compared, under_way
        self.forgets = False
        self._keys = sorted(
            key
            for key in {*loaded, *listing}
            if (wanted is None or key in wanted) and loaded.get(key, True) is not None
        )

    def __getitem__(self, key: str) -> _ListedPartition:
        loaded, there = self._loaded.get(key) or Loaded(None, Manifest()), self._listing.get(key, {})
        manifest = loaded.manifest
        if self._under_way and (manifest.pending is not None or manifest.garbage):
            pending = manifest.pending.publish if manifest.pending else ()
            passing = {*(each.name for each in manifest.garbage), *(each.file.name for each in pending)}
            there = {name: info for name, info in there.items() if name not in passing}
        look = _ListedPartition.of(loaded, there, pages_compared=self._pages_compared)
        return replace(look, known={}) if self.forgets else look

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def unknown(self, key: str) -> Sequence[ObjectInfo]:
        """The files of a partition that are not in its manifest as they are."""
        return self[key].unknown

    @property
    def named(self) -> Iterator[tuple[DataFile, ObjectInfo]]:
        """Files of manifests that are there by name."""
        known = (key for key in self._keys if (loaded := self._loaded.get(key)) and loaded.manifest.files)
        return (each for key in known for each in self[key].named)


class _Reconciler:
    def __init__(
        self,
        folder: FeedFolder,
        only: str | None,
        run_id: str,
        footers: Footers,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self._folder, self._only, self._run_id = folder, only, run_id
        self._footers, self._on_progress = footers, on_progress
        self._copied, self._done = False, Reconciliation()
        self.settled: dict[str, Loaded] = {}

    def run(self) -> Reconciliation:
        done, lost = self._done, self._round(None if self._only is None else {self._only})
        for _ in range(ATTEMPTS - 1):
            if not lost:
                break
            lost = self._round(lost)
        done.partitions = dict(sorted(done.partitions.items()))
        done.changed.sort()
        # a partition that took two rounds reported its files twice
        done.problems, done.left_out = list(dict.fromkeys(done.problems)), list(dict.fromkeys(done.left_out))
        done.damaged, done.pages = list(dict.fromkeys(done.damaged)), self._footers.compared
        done.waiting += [f"{key}: other processes keep changing it" for key in sorted(lost)]
        if done.changed:
            reports = [done.partitions[key] for key in done.changed]
            self._folder.summary.merge(reports, removed=(), at=None)
            logger.info("reconciled %s: %d partitions changed", self._folder.feed.path, len(done.changed))
        return done

    def _round(self, wanted: set[str] | None) -> set[str]:
        """Looks at all partitions, or at some once more; returns those that another process changed meanwhile."""
        loaded = self._load(wanted, self._settled)
        listing = list_folder(self._folder, self._only)
        if wanted is None or self._only is not None:
            self._done.other_files, self._done.problems = listing.other_files, list(listing.problems)
            self._done.links = list(listing.links)
        looks = _Looks(loaded, listing.partitions, wanted=wanted, pages_compared=self._footers.compared is not None)
        looks.forgets = self._only is None and _has_no_rows_yet(looks)
        read = self._read(looks)
        schema = self._fold(read, anew=looks.forgets)
        self._copied = self._only is None and looks_copied(looks.named)
        with ThreadPoolExecutor(THREADS) as pool:
            jobs = {key: pool.submit(self._commit, key, looks, read, schema) for key in looks}
            return {key for key, job in jobs.items() if not job.result()}

    def foresee(self) -> tuple[Reconciliation, Mapping[str, Manifest]]:
        """A round without its changes."""
        loaded = self._load(None, self._unchanged)
        listing = list_folder(self._folder)
        self._done.problems, self._done.links = list(listing.problems), list(listing.links)
        looks = _Looks(loaded, listing.partitions, under_way=True)
        read = self._read(looks)
        anew = _has_no_rows_yet(looks)
        before = self._folder.state.load().schema
        found = ((self._folder.partition_path(key), each) for key, each in read.found())
        schema = fold(schema_from_json(before) if before and not anew else None, found)
        self._copied = looks_copied(looks.named)
        manifests = {
            key: replace(look.loaded.manifest, files=tuple(self._files(key, look, read, schema)[0]), pending=None)
            for key, look in looks.items()
        }
        return self._done, manifests

    def _load(self, wanted: set[str] | None, load: Callable[[str], Loaded | None]) -> dict[str, Loaded | None]:
        """The manifests, many at once; None for those that nobody can read or settle now."""
        keys = sorted(wanted) if wanted is not None else self._folder.partition_keys()
        with ThreadPoolExecutor(THREADS) as pool:
            return dict(zip(keys, pool.map(load, keys), strict=True))

    def _unchanged(self, key: str) -> Loaded | None:
        try:
            return self._folder.log(key).load()
        except CorruptLake as error:
            self._done.waiting.append(f"{key}: {error.reason}")
            return None

    def _settled(self, key: str) -> Loaded | None:
        log = self._folder.log(key)
        passing = (PreconditionFailed, AmbiguousWrite, TransientStoreError)
        try:
            return retried(lambda: log.settle(log.load()), attempts=ATTEMPTS, on=passing)
        except (*passing, CorruptLake) as error:
            self._done.waiting.append(f"{key}: {error.reason}")
            return None

    def _read(self, looks: _Looks) -> Read:
        read = self._footers.read(looks, looks.unknown, on_progress=self._on_progress)
        self._done.footers_read, self._done.footers_s = self._footers.files, self._footers.seconds
        self._done.other_files += read.other_files
        self._done.problems += read.problems
        return read

    def _fold(self, read: Read, *, anew: bool) -> FolderSchema:
        """The schema is widened before the manifests name files that need it.

        Args:
            read: What the new files say.
            anew: Forget the schema so far.
        """
        before = self._folder.state.load().schema
        known = schema_from_json(before) if before and not anew else None
        found = ((self._folder.partition_path(key), each) for key, each in read.found())
        folded = fold(known, found)
        widened = folded.schema
        if widened is not None and (known is None or not widened.equals(known, check_metadata=True)):

            def widen(state: FeedState) -> FeedState:
                is_forgotten = not state.schema or (anew and state.schema == before)
                now = widened if is_forgotten else schema_from_json(state.schema or "")
                try:
                    both = unify_schemas([now, widened], reading=True)
                except Incompatible as error:
                    raise TransientStoreError(self._folder.feed.path, f"others changed it too: {error}") from error
                return replace(state, position_kind="listing", schema=schema_to_json(both))

            self._folder.state.change(widen)
        self._done.schema = folded.schema
        return folded

    def _commit(self, key: str, looks: _Looks, read: Read, schema: FolderSchema) -> bool:
        """Takes a partition's files over; False if another process was faster."""
        look = looks[key]
        log, loaded, manifest = self._folder.log(key), look.loaded, look.loaded.manifest
        now, same = (manifest.files, set[str]()) if look.is_unchanged else self._files(key, look, read, schema)
        if not look.is_unchanged and set(now) != set(manifest.files):
            names = {file.name for file in now} ^ {file.name for file in manifest.files}
            is_copied = not names and {file.name for file in set(now) - set(manifest.files)} <= same
            encoded = schema_to_json(schema.schema) if schema.schema is not None else None
            try:
                kind = "copied" if is_copied else "reconcile"
                loaded = log.reconcile(loaded, now, kind=kind, run_id=self._run_id, schema=encoded)
            except (PreconditionFailed, AmbiguousWrite, TransientStoreError) as error:
                logger.debug("%s is listed again: %s", log.data_folder, error)
                return False
            if not is_copied:
                self._count(key, manifest, loaded.manifest, same)
            manifest = loaded.manifest
        if self._only is not None:
            self.settled[key] = loaded
        if manifest.generation:
            self._done.partitions[key] = self._folder.report(key, manifest)
            theirs = [commit.commit_id for commit in manifest.history if commit.kind == "reconcile"]
            self._done.versions[key] = theirs[-1] if theirs else "unknown"
        path = self._folder.partition_path(key)
        for file in manifest.files:
            name = f"{path}/{file.name}".lstrip("/")
            if file.left_out:
                self._done.left_out.append(Problem(key, name, file.left_out))
            if file.damaged:
                self._done.damaged.append(Problem(key, name, file.damaged))
        return True

    def _files(
        self, key: str, look: _ListedPartition, read: Read, schema: FolderSchema
    ) -> tuple[Sequence[DataFile], set[str]]:
        """What the manifest should name, and those of it that are the same files as before with other ETags."""
        path, before = self._folder.partition_path(key), {file.name: file for file in look.loaded.manifest.files}
        files, same, read_now = [], set(), read.of(key, look.unknown)
        for name in sorted(look.there):
            found = read_now.get(name)
            if name in look.known:
                files.append(look.known[name])
            elif found is not None:
                now = msgspec.structs.replace(found.file, left_out=schema.reason(path, found.schema))
                old = before.get(name)
                if old is not None and (
                    old.etag == now.etag or is_same_file(self._folder, key, old, found, copied=self._copied)
                ):
                    damaged = now.damaged if found.compared else old.damaged
                    now = msgspec.structs.replace(old, etag=now.etag, left_out=now.left_out, damaged=damaged)
                    if damaged == old.damaged:
                        same.add(name)
                files.append(now)
        return files, same

    def _count(self, key: str, before: Manifest, after: Manifest, same: set[str]) -> None:
        was, now = {file.name: file for file in before.files}, {file.name: file for file in after.files}
        self._done.changed.append(key)
        self._done.added += len(now.keys() - was.keys())
        self._done.removed += len(was.keys() - now.keys())
        self._done.rewritten += sum(was[name] != file for name, file in now.items() if name in was and name not in same)


def _has_no_rows_yet(looks: _Looks) -> bool:
    """Whether rows come to files that have none: what these say of the schema counts no more, since rows decide."""
    has_news = has_known = False
    for look in looks.values() if next(looks.named, None) else ():
        has_news = has_news or len(look.there) > len(look.known)
        for file in look.known.values():
            if file.rows and not file.left_out:
                return False
            has_known = True
            has_news = has_news or bool(file.left_out)
    return has_news and has_known

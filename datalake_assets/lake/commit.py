"""The commit protocol: stage, prepare, publish, commit, sweep, on any store with compare-and-swap.

`datalake_assets.core.manifest` says what follows what; this module carries it out, one store operation at a time, so
that a process may die between any two of them. Every rule here was found necessary by the model check in
``datalake_assets_tests/lake/test_commit_model.py``; see ``docs/adr/001-partition-manifest.md``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import msgspec

from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Decision, Garbage, Manifest, Pending, Publish, Seen, decide
from datalake_assets.core.position import Position
from datalake_assets.core.values import Value
from datalake_assets.core.wording import name_text
from datalake_assets.errors import (
    AmbiguousWrite,
    CommitConflict,
    CorruptLake,
    LakeError,
    PreconditionFailed,
    TransientStoreError,
    UploadGone,
)
from datalake_assets.lake.file_identity import Leftover, covers_all, leftover_of
from datalake_assets.lake.store.base import ObjectInfo, StagedFile, Store
from datalake_assets.lake.store.swap import known_object, swap_object
from datalake_assets.tracing import span

__all__ = ["Change", "Loaded", "PartitionLog", "Planned"]

logger = logging.getLogger(__name__)

#: Attempts at one commit before giving up; each lost one means that another writer got further, or a busy store.
ATTEMPTS = 20


class Loaded(Value, frozen=True):
    """A manifest as it was read: ``etag`` is None if there was none."""

    etag: str | None
    manifest: Manifest


class Planned(Value, frozen=True):
    """What a change does to the manifest that it was planned on, beside adding files; becomes part of `Pending`.

    What it ``follows`` is the manifest of the same partition in another form: its history goes on in this one.
    """

    position: Position | None = None
    remove: tuple[str, ...] = ()
    schema: str | None = None
    deleted: bool = False
    checksums: Mapping[str, str] = msgspec.field(default_factory=dict)
    follows: Manifest | None = None


class Change(Value, frozen=True):
    """One commit to be.

    Attributes:
        commit_id: Unique name of the commit.
        kind: What the commit does to the rows: one of `Pending`'s kinds.
        files: Staged files with what is known of them.
        plan: Called with every base that the commit is tried on. Returns None if there is nothing (left) to do; raises
            `CommitConflict` or another error if the staged files cannot go onto that base.
        run_id: The run that makes it; empty if none.
    """

    commit_id: str
    kind: str
    files: tuple[tuple[StagedFile, DataFile], ...]
    plan: Callable[[Manifest], Planned | None]
    run_id: str = ""


class PartitionLog:
    """The manifest of one partition, and the commits made through it.

    Args:
        store: Where the manifest lives.
        manifest_key: The manifest's key.
        data_folder: Folder of the partition's data files.
        new_id: Gives a fresh unique text at every call.
        data_store: Where the data files live, and where they are staged; None = with the manifest.
        guarded: The data folder is adopted: files are replaced only if they still are what was read, and
            deleted only if they still are what was replaced.
        claim: Called before a commit is prepared, or one that was found is finished; raises if somebody else may be
            changing the folder. None: nobody else has a manifest of it.
        small_file_bytes: Below this a file counts as small in the history; None: the history doesn't count.
    """

    def __init__(
        self,
        store: Store,
        manifest_key: str,
        data_folder: str,
        new_id: Callable[[], str],
        *,
        data_store: Store | None = None,
        guarded: bool = False,
        claim: Callable[[], None] | None = None,
        small_file_bytes: int | None = None,
    ) -> None:
        self._claim = claim
        self._store, self.manifest_key, self.data_folder, self._new_id = store, manifest_key, data_folder, new_id
        self._data = store if data_store is None else data_store
        self._guarded, self._small_file_bytes = guarded, small_file_bytes

    def load(self) -> Loaded:
        """Reads the manifest; an absent one counts as empty.

        Raises:
            CorruptLake: It cannot be understood.
        """
        known = known_object(self._store, self.manifest_key)
        if known.body is None:
            return Loaded(None, Manifest())
        return Loaded(known.etag, Manifest.from_bytes(known.body, where=self.manifest_key))

    def settle(self, loaded: Loaded) -> Loaded:
        """Finishes whatever is under way: publishes and commits, or undoes; then sweeps. Idempotent.

        Where another process got there first, and may be at its own commit, what that left is finished in turn; where
        an answer was lost, what is there is read again.

        Returns:
            The manifest with nothing pending and no garbage.

        Raises:
            CorruptLake: A file that was to be deleted has another ETag, and nobody can say whether it is the same.
            PreconditionFailed: Others got there first again and again.
            AmbiguousWrite: Answers were lost again and again.
            TransientStoreError: The store does not know yet what became of a staged file: try again later.
        """
        for _ in range(ATTEMPTS - 1):
            try:
                return self._settle(loaded)
            except (PreconditionFailed, AmbiguousWrite):
                loaded = self.load()
        return self._settle(loaded)

    def _settle(self, loaded: Loaded, *, claimed: bool = False) -> Loaded:
        if loaded.manifest.pending is not None:
            if self._claim is not None and not claimed:
                self._claim()
            loaded = self._finish(loaded, loaded.manifest.pending)
        if loaded.manifest.garbage:
            unknown = self._sweep(loaded.manifest)
            if unknown != {each.name for each in loaded.manifest.garbage}:
                loaded = self._swap(loaded, loaded.manifest.swept(unknown))
            if unknown:
                raise _undecided(self.data_folder, unknown)
        return loaded

    def _sweep(self, manifest: Manifest) -> set[str]:
        """Deletes garbage; returns the names of those of which nobody can say whether they are what was replaced."""
        guarded = {self.key_of(each.name): each for each in manifest.garbage if each.etag}
        self._data.delete(self.key_of(each.name) for each in manifest.garbage if not each.etag)
        others = self._data.delete_if({key: each.etag for key, each in guarded.items()}) if guarded else ()
        if not others:
            return set()
        found = self._leftovers({key: guarded[key] for key in others}, manifest)
        copies = {info.key: info.etag for info, what in found if what is Leftover.COPY}
        kept = {*self._data.delete_if(copies)} if copies else set()
        for key in sorted({info.key for info, what in found if what is Leftover.OTHER}):
            logger.warning("%s was replaced, and written again by somebody else before it was deleted: it stays", key)
        unknown = {info.key for info, what in found if what is Leftover.UNKNOWN} | kept
        return {guarded[key].name for key in unknown}

    def _leftovers(self, garbage: Mapping[str, Garbage], manifest: Manifest) -> list[tuple[ObjectInfo, Leftover]]:
        """What is there under the names of replaced files, with other ETags; as in a folder that was copied."""
        found = [info for key in garbage if (info := self._data.head(key)) is not None]
        vague = any(not covers_all(garbage[info.key].checksum) for info in found)
        copied = vague and self._was_copied(manifest)
        return [(info, leftover_of(self._data, garbage[info.key], info, copied=copied)) for info in found]

    def _was_copied(self, manifest: Manifest) -> bool:
        """Whether a file that we made has another ETag by now: nobody else writes under its name."""
        made = ((file.etag, self._data.head(self.key_of(file.name))) for file in manifest.files if file.checksum)
        return any(info is not None and info.etag != etag for etag, info in made)

    def reconcile(
        self,
        loaded: Loaded,
        files: Sequence[DataFile],
        *,
        kind: str = "reconcile",
        run_id: str = "",
        schema: str | None = None,
    ) -> Loaded:
        """Takes over what a listing found, in one swap of the manifest that was read before it.

        Args:
            loaded: The settled manifest as it was read *before* the listing: then no commit can have come between.
            files: All files of the partition.
            kind: ``copied`` if they are the same as before but for their ETags.
            run_id: The run that saw them.
            schema: Their schema; None keeps the present one.

        Raises:
            PreconditionFailed: A commit came between; load and list again.
        """
        manifest = loaded.manifest.reconciled(
            files,
            commit_id=self._new_id(),
            at=self._store.now(),
            kind=kind,
            run_id=run_id,
            schema=schema,
            small_file_bytes=self._small_file_bytes,
        )
        return self._swap(loaded, manifest)

    def commit(self, change: Change, *, base: Loaded | None = None) -> tuple[Loaded, bool]:
        """Makes ``change`` part of the partition, exactly once.

        Args:
            change: What is to be.
            base: The settled manifest as it was last seen, which saves reading it: if it is another by now, the swap
                says so. None: read it.

        Returns:
            The manifest after it, and whether there was anything to do.

        Raises:
            CommitConflict: The staged files are of no use any more; read the source again and stage anew.
            LakeError: The store failed. A later commit, or a repair, finishes what may be under way.
        """
        with span("commit", folder=self.data_folder, commit=change.commit_id):
            for _ in range(ATTEMPTS - 1):
                try:
                    return self._attempt(change, base)
                except (PreconditionFailed, TransientStoreError, AmbiguousWrite) as error:
                    logger.debug("commit %s of %s tried again: %s", change.commit_id, self.data_folder, error)
                    base = None
            return self._attempt(change)

    def discard(self, change: Change) -> None:
        """Gives up the staged files of a change that was not prepared; failures are left to the sweep by age."""
        for staged, _ in change.files:
            try:
                self._data.discard_staged(staged)
            except LakeError as error:
                logger.debug("left to the sweep: %s", error)

    def key_of(self, name: str) -> str:
        """The key of a data file of this partition, in the data store."""
        return f"{self.data_folder}/{name}"

    def _attempt(self, change: Change, base: Loaded | None = None) -> tuple[Loaded, bool]:
        loaded = base or self.load()
        if loaded.manifest.committed_already(change.commit_id):
            return self._settle(loaded), True
        loaded = self._settle(loaded)
        if loaded.manifest.committed_already(change.commit_id):
            return loaded, True
        planned = self._plan(change, loaded.manifest)
        if planned is None:
            return loaded, False
        known = loaded.manifest
        if planned.follows is not None:
            known = replace(known, generation=planned.follows.generation, history=planned.follows.history)
        loaded = self._swap(loaded, known.prepared(_pending(change, planned)))
        loaded = self._settle(loaded, claimed=True)
        if not loaded.manifest.committed_already(change.commit_id):
            raise CommitConflict(self.data_folder, "staged files were gone before they could be published")
        logger.info(
            "committed %s of %s: generation %d, %d files added, %d removed",
            change.kind,
            self.data_folder,
            loaded.manifest.generation,
            len(change.files),
            len(planned.remove),
        )
        return loaded, True

    def _plan(self, change: Change, base: Manifest) -> Planned | None:
        """The plan on this base; without one, or with an error, the staged files are of no use."""
        planned = None
        try:
            wanted = change.plan(base)
            if self._guarded and wanted is not None:
                self._check_unchanged(base, wanted)
                if self._claim is not None:
                    self._claim()
            planned = wanted
        finally:
            if planned is None:
                self.discard(change)
        return planned

    def _check_unchanged(self, base: Manifest, planned: Planned) -> None:
        replaced = set(planned.remove)
        etags = {self.key_of(file.name): file.etag for file in base.files if file.name in replaced}
        changed = self._data.changed(etags)
        if changed:
            raise CommitConflict(
                changed[0], "another writer changed or deleted it since it was read", cure="run it again"
            )

    def _finish(self, loaded: Loaded, pending: Pending) -> Loaded:
        results = [self._publish(publish) for publish in pending.publish]
        decision = decide(seen for seen, _ in results)
        if decision is Decision.WAIT:
            raise TransientStoreError(self.data_folder, "a file of a prepared commit could not be published yet")
        if decision is Decision.BACK:
            self._abort(pending)
            undone = self._swap(loaded, loaded.manifest.rolled_back())
            # not before: to a process that overslept, files that were committed and merged since look lost
            logger.warning("commit %s of %s was undone: a staged file is gone", pending.commit_id, self.data_folder)
            return undone
        self._data.sync(self.key_of(publish.file.name) for publish in pending.publish)
        published = [file for _, file in results]
        at, small = self._store.now(), self._small_file_bytes
        done = loaded.manifest.committed(published, at=at, guarded=self._guarded, small_file_bytes=small)
        return self._swap(loaded, done)

    def _publish(self, publish: Publish) -> tuple[Seen, DataFile]:
        """One attempt to publish; then, where it may have failed, a look at the staged file first, the object second.

        In that order, since publishing is atomic: a staged file that is gone was published before the second look.
        """
        staged = self._staged(publish)
        refused = staged_there = False
        try:
            self._data.publish(staged)
        except (UploadGone, AmbiguousWrite, TransientStoreError):
            staged_there = self._data.has_staged(staged)
        except CorruptLake:
            refused, staged_there = True, self._data.has_staged(staged)
        info = self._data.head(staged.key)
        there = info is not None and info.size_bytes == publish.file.size_bytes
        if there and staged_there:
            # a local publish is a link and an unlink: what stays could be linked again after the file's removal
            self._data.discard_staged(staged)
        file = msgspec.structs.replace(publish.file, etag=info.etag) if info else publish.file
        return Seen(staged=staged_there, published=there, refused=refused), file

    def _abort(self, pending: Pending) -> None:
        for publish in pending.publish:
            staged = self._staged(publish)
            self._data.discard_staged(staged)
            if self._data.has_staged(staged):
                raise TransientStoreError(self.data_folder, "a staged file could not be given up yet")

    def _staged(self, publish: Publish) -> StagedFile:
        file = publish.file
        return StagedFile(self.key_of(file.name), file.size_bytes, publish.token, publish.parts)

    def _swap(self, loaded: Loaded, manifest: Manifest) -> Loaded:
        """Compare-and-swap; the write id, which is fresh every time, makes the body unique."""
        stamped = manifest.stamped(self._new_id())
        etag = swap_object(self._store, self.manifest_key, stamped.to_bytes(), etag=loaded.etag)
        return Loaded(etag, stamped)


def _undecided(folder: str, names: Collection[str]) -> CorruptLake:
    first = f"{folder}/{name_text(min(names))}"
    named = first if len(names) == 1 else f"{first} and {len(names) - 1:,} more"
    return CorruptLake(
        folder,
        f"{named} had been merged and was to be deleted, and is another by its ETag now: nobody can say whether it is a"
        " copy, whose rows the merged file has, or a new file. Delete it if it is a copy, rename it if it is new",
        cure="then run it again",
    )


def _pending(change: Change, planned: Planned) -> Pending:
    return Pending(
        commit_id=change.commit_id,
        kind=change.kind,
        run_id=change.run_id,
        publish=_publishes(change.files),
        remove=planned.remove,
        position=planned.position,
        schema=planned.schema,
        deleted=planned.deleted,
        checksums=planned.checksums,
    )


def _publishes(files: Sequence[tuple[StagedFile, DataFile]]) -> tuple[Publish, ...]:
    return tuple(Publish(file, staged.token, staged.parts) for staged, file in files)

"""The partition manifest and its state machine: the one truth about what a partition holds.

Every change of a partition (append, replace, snapshot, compact, delete) walks through the same states, each a
compare-and-swap of one small object::

    idle ──prepare──> pending ──committed──> idle (+ garbage) ──swept──> idle
      │                  └─────rolled_back──> idle (+ garbage)
      └──reconciled──> idle                   an adopted folder, whose files others wrote

From ``pending`` on, whoever comes next finishes the commit: forward if all its files could be published, back if one of
them is gone. This module holds the transitions, pure; `datalake_assets.lake.commit` carries them out. Why the rules are
as they are is in ``docs/adr/001-partition-manifest.md``.

Its JSON is what the structs here say, field by field and in their order, and decoded by msgspec: `Manifest` for those
who change a partition, `Holdings` for those who read thousands of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import Enum
from typing import Any

import msgspec

from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest_bytes import FORMAT, decoded_manifest, manifest_bytes
from datalake_assets.core.position import Position, SnapshotPosition, WindowPosition, position_from_json
from datalake_assets.core.values import Value
from datalake_assets.errors import CommitConflict, CorruptLake

__all__ = [
    "FORMAT",
    "HISTORY",
    "Commit",
    "Decision",
    "Garbage",
    "Holdings",
    "Manifest",
    "PastCommit",
    "Pending",
    "Publish",
    "Seen",
    "decide",
]


#: Kinds of changes that leave the rows as they are.
REWRITES = frozenset({"compact", "convert", "copied"})


class Publish(msgspec.Struct, frozen=True):
    """A staged file on its way to being visible: all that any process needs to publish it.

    Attributes:
        file: The file as it will be committed.
        token: S3: upload id; local: key of the staged file.
        parts: S3: ETags of the parts, in order.
    """

    file: DataFile
    token: str
    parts: tuple[str, ...] = ()


class Pending(Value, frozen=True):
    """A prepared commit.

    Attributes:
        commit_id: Names the commit, through all attempts.
        kind: ``append``, ``merge``, ``replace``, ``snapshot``, ``compact``, ``erase`` or ``delete``; in the history
            also ``reconcile``, and ``copied`` where the same files were found with other ETags.
        run_id: The run that made it; empty if none.
        publish: Files to make visible.
        remove: Names of files that it replaces.
        checksums: Of these, by name, where they were read for it; as in `Garbage`.
        position: The position after it; None keeps the present one.
        schema: The schema after it (`datalake_assets.core.schema`); None keeps the present one.
        deleted: Whether the partition is gone after it.
    """

    commit_id: str
    kind: str
    run_id: str
    publish: tuple[Publish, ...]
    remove: tuple[str, ...] = ()
    position: Position | None = None
    schema: str | None = None
    deleted: bool = False
    checksums: Mapping[str, str] = msgspec.field(default_factory=dict)


class Commit(msgspec.Struct, frozen=True, gc=False, omit_defaults=True, forbid_unknown_fields=True):
    """A line of a manifest's history; times are aware UTC.

    Attributes:
        commit_id: As in `Pending`.
        kind: As in `Pending`.
        at: When it was committed.
        run_id: As in `Pending`.
        rows: Rows in the files that it added.
        files_added: How many these are.
        files_removed: Files that it replaced.
        files: Files of the partition after it; like what follows None if unknown, as in older manifests.
        small_files: Of these, files below the feed's ``small_file_bytes`` at the time.
        size_bytes: Their size.
        total_rows: Their rows.
    """

    commit_id: str
    kind: str
    at: datetime
    run_id: str
    rows: int
    files_added: int
    files_removed: int
    files: int | None = None
    small_files: int | None = None
    size_bytes: int | None = None
    total_rows: int | None = None


class PastCommit(msgspec.Struct, frozen=True, gc=False):
    """What matters of a `Commit` to a report, which has a hundred thousand of them; its names would weigh most."""

    kind: str
    at: datetime
    rows: int
    files_added: int
    files_removed: int
    files: int | None = None
    small_files: int | None = None
    size_bytes: int | None = None


class Garbage(msgspec.Struct, frozen=True, omit_defaults=True):
    """A file that no longer belongs to the partition and may still be there.

    Attributes:
        name: Its name.
        etag: In an adopted folder: it is deleted only while it has this ETag; empty = whatever it is.
        size_bytes: In a copied folder ETags differ, and it is deleted if it has this size; None if unknown.
        checksum: And this checksum, of all of it or of its end (`datalake_assets.lake.file_identity`).
    """

    name: str
    etag: str = ""
    size_bytes: int | None = None
    checksum: str = ""


#: Commits remembered in a manifest.
HISTORY = 20


class Manifest(Value, frozen=True):
    """What a partition holds, and what is under way.

    Attributes:
        generation: Commits so far.
        write_id: Fresh for every write of the object; settles writes whose answer was lost.
        files: The committed files.
        position: How much of the source they are; None before the first commit.
        schema: Schema of the newest commit, encoded; None before the first.
        pending: A prepared commit, to be finished by whoever comes next.
        garbage: Files that are no longer part of the partition and may still be there.
        history: The last commits, oldest first.
        deleted: Retention removed the partition; the manifest stays as the fence.
    """

    generation: int = 0
    write_id: str = ""
    files: tuple[DataFile, ...] = ()
    position: Position | None = None
    schema: str | None = None
    pending: Pending | None = None
    garbage: tuple[Garbage, ...] = ()
    history: tuple[Commit, ...] = ()
    deleted: bool = False

    @property
    def rows(self) -> int:
        """Rows in all committed files."""
        return sum(file.rows for file in self.files)

    def committed_already(self, commit_id: str) -> bool:
        """Whether a commit of this id is among the last ones."""
        return any(commit.commit_id == commit_id for commit in self.history)

    @property
    def content(self) -> str:
        """A text that changes whenever the rows may have, and with no merging of files; empty before any commit.

        Of a partition that is replaced as a whole, and of a version, it follows from the rows alone: the same rows
        again are no change.
        """
        if isinstance(self.position, WindowPosition | SnapshotPosition) and self.position.fingerprint:
            return f"{self.rows} rows {self.position.fingerprint}"
        changes = [commit.commit_id for commit in self.history if commit.kind not in REWRITES]
        if changes:
            return changes[-1]
        return f"generation {self.generation}" if self.generation else ""

    def prepared(self, pending: Pending) -> Manifest:
        """The manifest with ``pending`` under way.

        Raises:
            CommitConflict: One of its files is in already: it was committed so long ago that the history forgot it.
            CorruptLake: Another commit is under way, garbage is left, or a file to remove is not there.
        """
        names = {file.name for file in self.files}
        if not names.isdisjoint(publish.file.name for publish in pending.publish):
            raise CommitConflict(pending.commit_id, "was committed already, and its files partly replaced since")
        if self.pending is not None or self.garbage:
            raise CorruptLake("manifest", "prepared over an unfinished commit")
        if not names.issuperset(pending.remove):
            raise CorruptLake("manifest", "prepared to remove files that are not there")
        return replace(self, pending=pending)

    def committed(
        self,
        published: Sequence[DataFile],
        *,
        at: datetime,
        guarded: bool = False,
        small_file_bytes: int | None = None,
    ) -> Manifest:
        """The manifest with the pending commit done: its files in, those that it replaces on the garbage list.

        Args:
            published: The commit's files.
            at: When.
            guarded: The folder is adopted: what is replaced may be deleted only if it still is what it was.
            small_file_bytes: Below this a file counts as small; None leaves the partition's figures out of the history.
        """
        pending = self._pending()
        removed = {name: Garbage(name) for name in pending.remove}
        kept = tuple(file for file in self.files if file.name not in removed)
        if guarded:
            for file in self.files:
                if file.name in removed:
                    checksum = pending.checksums.get(file.name, file.checksum)
                    removed[file.name] = Garbage(file.name, file.etag, file.size_bytes, checksum)
        files = kept + tuple(published)
        named = {"commit_id": pending.commit_id, "kind": pending.kind, "at": at, "run_id": pending.run_id}
        entry = _entry(named, published, len(pending.remove), files, small_file_bytes)
        return replace(
            self,
            generation=self.generation + 1,
            files=files,
            position=pending.position or self.position,
            schema=pending.schema or self.schema,
            pending=None,
            garbage=(*self.garbage, *removed.values()),
            history=(*self.history, entry)[-HISTORY:],
            deleted=pending.deleted,
        )

    def rolled_back(self) -> Manifest:
        """The manifest with the pending commit undone: whatever of it became visible is garbage."""
        published = tuple(Garbage(publish.file.name) for publish in self._pending().publish)
        return replace(self, pending=None, garbage=self.garbage + published)

    def reconciled(
        self,
        files: Sequence[DataFile],
        *,
        commit_id: str,
        at: datetime,
        kind: str = "reconcile",
        run_id: str = "",
        schema: str | None = None,
        small_file_bytes: int | None = None,
    ) -> Manifest:
        """The manifest with the files that are there now, after other writers changed some. Nothing is deleted for it.

        Args:
            files: All files of the partition.
            commit_id: Names the change in the history.
            at: When.
            kind: ``reconcile`` or ``copied``.
            run_id: The run that saw it.
            schema: The schema of the files now; None keeps the present one.
            small_file_bytes: As in `committed`.

        Raises:
            CorruptLake: A commit is under way, or garbage is left: a listing would take that for the folder's files.
        """
        if self.pending is not None or self.garbage:
            raise CorruptLake("manifest", "reconciled over an unfinished commit")
        before, after = set(self.files), set(files)
        added = after - before
        named = {"commit_id": commit_id, "kind": kind, "at": at, "run_id": run_id}
        entry = _entry(named, added, len(before - after), files, small_file_bytes)
        return replace(
            self,
            generation=self.generation + 1,
            files=tuple(files),
            schema=schema or self.schema,
            history=(*self.history, entry)[-HISTORY:],
            deleted=False,
        )

    def swept(self, kept: Collection[str] = ()) -> Manifest:
        """The manifest once the files on its garbage list are deleted, but for those of the names that are ``kept``."""
        return replace(self, garbage=tuple(each for each in self.garbage if each.name in kept))

    def stamped(self, write_id: str) -> Manifest:
        """Ready to be written, once, under a fresh id."""
        return replace(self, write_id=write_id)

    def _pending(self) -> Pending:
        if self.pending is None:
            raise CorruptLake("manifest", "nothing is pending")
        return self.pending

    def to_bytes(self) -> bytes:
        """The manifest's JSON document, UTF-8."""
        document = _Document(
            format=FORMAT,
            generation=self.generation,
            write_id=self.write_id,
            schema=self.schema,
            position=self.position.to_json() if self.position else None,
            deleted=self.deleted,
            files=(),
            pending=_PendingDocument.of(self.pending) if self.pending else None,
            garbage=tuple(each if each.etag else each.name for each in self.garbage),
            history=self.history,
        )
        return manifest_bytes(document, self.files)

    @classmethod
    def from_bytes(cls, body: bytes, *, where: str) -> Manifest:
        """Reads a manifest.

        Args:
            body: What `to_bytes` gave.
            where: The object's key, for errors.

        Raises:
            CorruptLake: It is not a manifest, or one of a later format.
        """
        document = decoded_manifest(body, _documents, where)
        try:
            return cls(
                generation=document.generation,
                write_id=document.write_id,
                files=document.files,
                position=position_from_json(document.position),
                schema=document.schema,
                pending=document.pending.pending() if document.pending else None,
                garbage=tuple(Garbage(each) if isinstance(each, str) else each for each in document.garbage),
                history=document.history,
                deleted=document.deleted,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptLake(where, f"not a manifest: {error!r}") from error


class _PendingDocument(msgspec.Struct, frozen=True, omit_defaults=True):
    """A `Pending` in JSON."""

    commit_id: str
    kind: str
    run_id: str
    publish: tuple[Publish, ...]
    remove: tuple[str, ...]
    position: dict[str, Any] | None
    schema: str | None
    deleted: bool
    checksums: dict[str, str] = msgspec.field(default_factory=dict)

    @classmethod
    def of(cls, pending: Pending) -> _PendingDocument:
        """The JSON of a prepared commit."""
        fields: dict[str, Any] = {name: getattr(pending, name) for name in cls.__struct_fields__}
        return cls(**fields | {"position": pending.position.to_json() if pending.position else None})

    def pending(self) -> Pending:
        """The prepared commit."""
        fields: dict[str, Any] = {name: getattr(self, name) for name in self.__struct_fields__}
        return Pending(**fields | {"position": position_from_json(self.position)})


class _Document(msgspec.Struct, frozen=True):
    """A manifest in JSON."""

    format: int
    generation: int
    write_id: str
    schema: str | None
    position: dict[str, Any] | None
    deleted: bool
    files: tuple[DataFile, ...]
    pending: _PendingDocument | None
    garbage: tuple[str | Garbage, ...]
    history: tuple[Commit, ...]


class Holdings(msgspec.Struct, frozen=True, gc=False):
    """What a partition holds, by its manifest, and how it came there; whatever else is in the JSON is skipped.

    Attributes:
        format: As in the manifest.
        generation: Commits so far.
        files: The committed files.
        history: The last commits, oldest first.
    """

    format: int
    generation: int
    files: tuple[DataFile, ...]
    history: tuple[PastCommit, ...]

    @classmethod
    def from_bytes(cls, body: bytes, *, where: str) -> Holdings:
        """Reads what a manifest holds, and skips the rest of it.

        Raises:
            CorruptLake: It is not a manifest, or one of a later format.
        """
        return decoded_manifest(body, _holdings, where)


_documents, _holdings = msgspec.json.Decoder(_Document), msgspec.json.Decoder(Holdings)


def _entry(
    named: dict[str, Any],
    added: Collection[DataFile],
    removed: int,
    files: Collection[DataFile],
    small_file_bytes: int | None,
) -> Commit:
    """A line of the history; it has the partition's figures where it is known which files are small."""
    rows = sum(file.rows for file in added)
    entry = Commit(**named, rows=rows, files_added=len(added), files_removed=removed)
    if small_file_bytes is None:
        return entry
    return msgspec.structs.replace(
        entry,
        files=len(files),
        small_files=sum(file.size_bytes < small_file_bytes for file in files),
        size_bytes=sum(file.size_bytes for file in files),
        total_rows=sum(file.rows for file in files),
    )


class Decision(Enum):
    """What may be done with a pending commit."""

    FORWARD = "all of its files are published"
    BACK = "a staged file is gone and was never published"
    WAIT = "the store cannot tell yet"


class Seen(Value, frozen=True):
    """What was seen of one file after an attempt to publish it; the staged file was asked for first.

    Attributes:
        staged: The staged file is still there.
        published: The object is there, with its recorded size.
        refused: The store refused for good to publish it.
    """

    staged: bool
    published: bool
    refused: bool = False


def decide(seen: Iterable[Seen]) -> Decision:
    """Whether a pending commit goes forward, goes back, or has to wait.

    A file that is neither staged nor published is lost, so the commit goes back. One that is still staged and not
    published means that the attempt failed for now: nobody may decide, unless the store refused it for good.
    """
    files = list(seen)
    lost = any(not file.staged and not file.published for file in files)
    refused = any(file.refused and not file.published for file in files)
    if lost or refused:
        return Decision.BACK
    return Decision.FORWARD if all(file.published for file in files) else Decision.WAIT

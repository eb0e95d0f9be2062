"""Commits of an Iceberg table that are under way: each lists its files in an object of its own, before any can be seen.

So the files of a process that died are found and deleted, and nobody has to guess by their age (ADR 022).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
from pyiceberg.table import Table

from datalake_assets.core.partitions import PartitionBy
from datalake_assets.errors import CorruptLake, DatalakeError, LakeError, ObjectNotFound, PreconditionFailed
from datalake_assets.feed import Feed
from datalake_assets.lake.iceberg.iceberg_views import TableView
from datalake_assets.lake.iceberg.manifests import Manifests
from datalake_assets.lake.store.base import StagedFile, Store

__all__ = ["CommitDocument", "CommitRecord", "TablePlace", "condemned", "discard", "leaving", "unfinished_commits"]


class TablePlace(Protocol):
    """Where a table and its files lie, as far as commits need it."""

    @property
    def store(self) -> Store:
        """The lake."""

    @property
    def data_store(self) -> Store:
        """Where the data files lie."""

    @property
    def feed(self) -> Feed:
        """The feed whose rows these are."""

    @property
    def by(self) -> PartitionBy | None:
        """Length of the partitions; None for versions."""

    @property
    def commits(self) -> str:
        """Folder of what is known of commits under way, in the lake."""

    @property
    def new_id(self) -> Callable[[], str]:
        """Gives a fresh unique text at every call."""

    def view(self) -> TableView:
        """The table as it is now."""

    def seen(self) -> TableView:
        """The table as it was when this write began, if one has: its commit says whether it is another by now."""

    def view_of(self, table: Table | None) -> TableView:
        """A table as it was loaded."""

    def reader(self, table: Table) -> Manifests:
        """Reads the table's manifests."""

    def uri_of(self, key: str, table: Table) -> str:
        """The URI of a data file, by its key."""

    def path_below(self, key: str) -> str:
        """The path of a data file below the table's location, by its key."""

    def expire_versions(self, view: TableView) -> TableView:
        """Lets go of the snapshots of versions that no tag keeps any more."""


def discard(store: Store, staged: Sequence[StagedFile]) -> None:
    """Gives files up, published or not; failures are left to the sweep by age."""
    for each in staged:
        if each.token:
            with contextlib.suppress(LakeError):
                store.discard_staged(each)


class CommitDocument(msgspec.Struct, frozen=True):
    """A commit that may be under way, in JSON.

    Attributes:
        commit_id: The commit.
        files: Its files: key, size, token and parts of each, as they were staged.
        condemned: Whether somebody is undoing it.
    """

    commit_id: str
    files: tuple[tuple[str, int, str, tuple[str, ...]], ...]
    condemned: bool = False

    @property
    def staged(self) -> list[StagedFile]:
        """Its files."""
        return [StagedFile(key, size, token, parts) for key, size, token, parts in self.files]


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """The object that lists the files of a commit that may be under way."""

    key: str

    @classmethod
    def begin(cls, folder: TablePlace, commit_id: str, staged: Sequence[StagedFile]) -> CommitRecord:
        """Writes it, before any file is visible."""
        files = tuple((each.key, each.size_bytes, each.token, tuple(each.parts)) for each in staged)
        record = cls(f"{folder.commits}/{commit_id}.json")
        folder.store.create(record.key, msgspec.json.encode(CommitDocument(commit_id, files)))
        return record

    def is_condemned(self, folder: TablePlace) -> bool:
        """Whether somebody undoes the commit, or has undone it."""
        try:
            return _decoded(folder.store.get(self.key)[0], self.key).condemned
        except ObjectNotFound:
            return True

    def end(self, folder: TablePlace, *, unused: Sequence[StagedFile]) -> None:
        """Forgets it: all is done, and files that no snapshot names are deleted."""
        with contextlib.suppress(LakeError):  # a repair does it then
            folder.data_store.delete(each.key for each in unused)
            folder.store.delete([self.key])

    @contextlib.contextmanager
    def given_up_on_errors(self, folder: TablePlace, staged: Sequence[StagedFile]) -> Iterator[None]:
        """Deletes the files if what is done here, before the commit, fails."""
        try:
            yield
        except DatalakeError:
            self.give_up(folder, staged)
            raise

    def give_up(self, folder: TablePlace, staged: Sequence[StagedFile]) -> None:
        """Deletes the files of a commit that was certainly not made."""
        discard(folder.data_store, staged)
        with contextlib.suppress(LakeError):  # a repair does it then
            folder.data_store.delete(each.key for each in staged)
            folder.store.delete([self.key])


@contextlib.contextmanager
def leaving(folder: TablePlace, keys: Sequence[str]) -> Iterator[None]:
    """Lists files that no snapshot will name in a moment, so that a repair deletes them if this process dies first."""
    name = folder.new_id()
    at = f"{folder.commits}/{name}.json"
    document = CommitDocument(name, tuple((key, 0, "", ()) for key in keys))
    folder.store.create(at, msgspec.json.encode(document))
    yield
    folder.store.delete([at])


def _decoded(body: bytes, where: str) -> CommitDocument:
    try:
        return msgspec.json.decode(body, type=CommitDocument)
    except msgspec.MsgspecError as error:
        raise CorruptLake(where, f"not a list of a commit's files: {error}") from error


def unfinished_commits(folder: TablePlace) -> Iterator[tuple[str, CommitDocument]]:
    """The commits that are under way, or were interrupted: the key of the object of each, and what it says."""
    for info in folder.store.list(folder.commits):
        with contextlib.suppress(ObjectNotFound):  # it has just ended
            yield info.key, _decoded(folder.store.get(info.key)[0], info.key)


def condemned(folder: TablePlace, key: str) -> CommitDocument | None:
    """The record, marked, so that its writer does not go on; None if it has ended meanwhile."""
    try:
        body, etag = folder.store.get(key)
        document = _decoded(body, key)
        if not document.condemned:
            document = msgspec.structs.replace(document, condemned=True)
            folder.store.swap(key, msgspec.json.encode(document), etag=etag)
    except (ObjectNotFound, PreconditionFailed):
        return None
    return document

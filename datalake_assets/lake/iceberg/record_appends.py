"""Appends to the tables of the write API: each in one commit, and once per key.

The key, what was written and what was answered lie in the same commit as the rows, in the snapshot's summary and, of
the newest `REMEMBERED` keys, in a property of the table, which outlives snapshots. Whoever loses the commit to another
writer loads the table again and looks for the key before trying again. That holds of a lost answer too: a commit that
lands late finds another base than its own, and fails.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any
from urllib.parse import quote_plus

import pyarrow as pa
from pyiceberg.io.pyarrow import _dataframe_to_data_files
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation, Snapshot
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, stop_after_delay, wait_random_exponential

from datalake_assets.errors import (
    AmbiguousWrite,
    CommitConflict,
    ConfigError,
    LakeError,
    LakeUnavailable,
    TransientStoreError,
)
from datalake_assets.lake.iceberg.catalog_commits import delete_quietly
from datalake_assets.lake.iceberg.iceberg_catalogs import catalog_failures
from datalake_assets.lake.iceberg.manifests import Manifests
from datalake_assets.lake.iceberg.snapshot_files import LiveFile, SnapshotFiles
from datalake_assets.lake.iceberg.transactions import TableChange, commit_change

__all__ = [
    "Appended",
    "FileTotals",
    "KeyReused",
    "PartitionTooLong",
    "RecordAppend",
    "SmallFilesProfile",
    "TooManyPartitions",
    "WriteKey",
    "data_files",
    "file_totals",
    "live_files",
    "translated",
]

#: Keys that a table remembers whatever becomes of its snapshots; a hundred bytes each, in every metadata file.
REMEMBERED = 200
#: Partitions that one append may write files to.
MAX_PARTITIONS = 200
_LONGEST_NAME = 255  # bytes of a file's name (Linux, limits.h, NAME_MAX)
#: Attempts to commit: of several writers one always wins, so that each gets its turn. Losing is no news: tenacity tells
#: nobody, where stamina would.
ATTEMPTS = 40
_WAIT_S, _LONGEST_WAIT_S, _TIMEOUT_S = 0.01, 1.0, 60.0
_PREFIX = "datalake.write-"
_WRITES, _KEYS, _ANSWER = f"{_PREFIX}count", f"{_PREFIX}keys", f"{_PREFIX}answer"


@dataclass(frozen=True, slots=True)
class FileTotals:
    """Of a snapshot's data files: rows, files, bytes, files below a size, and of these those that can be merged.

    Files can be merged with others of their partition.
    """

    rows: int = 0
    files: int = 0
    size_bytes: int = 0
    small_files: int = 0
    mergeable_files: int = 0


@dataclass(frozen=True, slots=True)
class WriteKey:
    """An idempotency key, and a digest of what is written under it."""

    key: str
    content: str

    @property
    def texts(self) -> tuple[str, str]:
        """Key and digest as tables remember them; the key of one length, and telling nobody anything."""
        return hashlib.sha256(self.key.encode()).hexdigest()[:32], self.content


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append did, as its first attempt told it: rows, and of every so many appends what small files there are.

    Attributes:
        snapshot_id: The snapshot.
        rows: Rows appended.
        small_files: Files below the small-file size; None where it was not the turn to look.
        recommended: Whether enough of them can be merged; None likewise.
    """

    snapshot_id: int
    rows: int
    small_files: int | None = None
    recommended: bool | None = None

    def to_json(self) -> list[int | bool | None]:
        """As tables remember it."""
        return [self.snapshot_id, self.rows, self.small_files, self.recommended]


@dataclass(frozen=True, slots=True)
class SmallFilesProfile:
    """When an append says whether small files should be merged.

    Attributes:
        every: At every so many appends of a table.
        at_least: If so many files can be merged.
        below_bytes: Size of a small file.
    """

    every: int
    at_least: int
    below_bytes: int


class KeyReused(LakeError):
    """An idempotency key was used before, for other records."""

    default_cure = "give each write a key of its own"


class TooManyPartitions(ConfigError):
    """An append whose rows belong to more partitions than one may touch."""

    def __init__(self, partitions: int) -> None:
        self.partitions, self.most = partitions, MAX_PARTITIONS
        super().__init__(f"the records belong to {partitions} partitions; write to at most {MAX_PARTITIONS} at a time")


class PartitionTooLong(ConfigError):
    """A value that a table is partitioned by is too long for the name of its folder."""

    def __init__(self, field: str) -> None:
        self.field = field
        super().__init__(f"a value of partition field {field!r} is too long for a folder's name; truncate or bucket it")


@contextmanager
def translated() -> Iterator[None]:
    """Foreign errors as ours; their texts name files, statements and servers, and stay behind."""
    try:
        yield
    except catalog_failures(OSError) as error:
        raise LakeUnavailable("tenants", f"the tenant's tables cannot be reached ({type(error).__name__})") from error


class RecordAppend:
    """One append, over all its attempts: its files are written once, and its snapshot has one number.

    Args:
        table: As it was loaded; it is loaded again where need be.
        name: As its tenant knows it.
        rows: In the table's Arrow schema.
        key: Makes repeating it safe.
        profile: When to look at small files.
    """

    def __init__(
        self, table: Table, name: str, rows: pa.Table, key: WriteKey | None, profile: SmallFilesProfile
    ) -> None:
        self._table, self._name, self._rows, self._key, self._profile = table, name, rows, key, profile
        self._snapshot_id = table.metadata.new_snapshot_id()
        self._files: list[DataFile] = []
        self._may_land_late = False

    def run(self) -> Appended:
        """Does it, in as many attempts as it takes.

        Raises:
            KeyReused: The key was used for other rows.
            TooManyPartitions: The rows are spread too widely.
            PartitionTooLong: A value is too long to partition by.
            CommitConflict: Other writers came first every time; nothing was written.
            AmbiguousWrite: It may have been written: only a repetition with the same key is safe.
            TransientStoreError: The catalog's database was locked all the time, or a disk is full; nothing was written.
        """
        waiting = Retrying(
            retry=retry_if_exception_type((CommitConflict, AmbiguousWrite, TransientStoreError)),
            stop=stop_after_attempt(ATTEMPTS) | stop_after_delay(_TIMEOUT_S),
            wait=wait_random_exponential(multiplier=_WAIT_S, max=_LONGEST_WAIT_S),
            reraise=True,
        )
        try:
            for attempt in waiting:
                with attempt:
                    return self._attempt(again=attempt.retry_state.attempt_number > 1)
        except CommitConflict as error:
            self._discard()
            raise CommitConflict(self._name, "other writers came first every time; nothing was written") from error
        except LakeError:  # an ambiguous one keeps the files
            self._discard()
            raise
        raise AssertionError

    def _attempt(self, *, again: bool) -> Appended:
        """One attempt; after a lost answer, whoever cannot look for what was written does not know."""
        try:
            return self._tried(again=again)
        except (AmbiguousWrite, LakeUnavailable, TransientStoreError) as error:
            if not self._may_land_late:
                raise
            raise AmbiguousWrite(
                self._name,
                "it is not known whether the records were written",
                cure="send it again with the same idempotency_key; without one, look first whether they are there",
            ) from error

    def _tried(self, *, again: bool) -> Appended:
        """Finds what was done before, or commits."""
        with translated():
            if again:
                self._table.refresh()
            done = self._done()
            if done is not None:
                return done
            if not self._files:
                _check_spread(self._table, self._rows)
                self._files = _written(self._table, self._rows)
            number = int(self._table.properties.get(_WRITES, 0)) + 1
            answer = self._answer(number, self._files)
            change = TableChange(
                Operation.APPEND,
                added=self._files,
                snapshot_id=self._snapshot_id,
                summary={} if self._key is None else {_ANSWER: _json([*self._key.texts, answer.to_json()])},
                set_properties={_WRITES: str(number), **self._remembered(answer)},
            )
            try:
                commit_change(self._table, change)
            except AmbiguousWrite:
                self._may_land_late = True
                raise
        return answer

    def _discard(self) -> None:
        """Deletes files that no snapshot names; if one may land late that does, they are left for orphan removal."""
        if not self._may_land_late:
            delete_quietly(self._table.io, [file.file_path for file in self._files])
        self._files = []

    def _answer(self, number: int, added: Sequence[DataFile]) -> Appended:
        answer = Appended(self._snapshot_id, self._rows.num_rows)
        if number % self._profile.every:
            return answer
        totals = file_totals([*data_files(self._table), *added], self._profile.below_bytes)
        recommended = totals.mergeable_files >= self._profile.at_least
        return replace(answer, small_files=totals.small_files, recommended=recommended)

    def _remembered(self, answer: Appended) -> dict[str, str]:
        """The property of the newest keys with this one in it."""
        if self._key is None:
            return {}
        before = _loaded(self._table.properties.get(_KEYS))
        return {_KEYS: _json([*before, [*self._key.texts, answer.to_json()]][-REMEMBERED:])}

    def _done(self) -> Appended | None:
        """What an earlier attempt, or a write with this key, did; files that are not in the table are deleted."""
        if self._key is None:
            known = self._table.metadata.snapshot_by_id(self._snapshot_id)
            return None if known is None else self._answer_again()
        found = self._known_answer(*self._key.texts)
        if found is not None and found.snapshot_id != self._snapshot_id:
            self._discard()
        return found

    def _answer_again(self) -> Appended:
        """The answer of an attempt that was committed though nobody said so."""
        return self._answer(int(self._table.properties.get(_WRITES, 0)), ())

    def _known_answer(self, hashed: str, content: str) -> Appended | None:
        summaries = (each.summary for each in reversed(self._table.snapshots()) if each.summary is not None)
        stated = (_loaded(each[_ANSWER]) for each in summaries if each[_ANSWER])
        for key, written, answer in chain(reversed(_loaded(self._table.properties.get(_KEYS))), stated):
            if key == hashed:
                if written != content:
                    raise KeyReused(self._name, "this idempotency key was used for another write")
                return Appended(*answer)
        return None


def _written(table: Table, rows: pa.Table) -> list[DataFile]:
    """Writes rows to data files that no snapshot names yet."""
    files = list(_dataframe_to_data_files(table.metadata, rows, table.io))
    for file in files:
        file.spec_id = table.metadata.default_spec_id
    return files


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _loaded(text: str | None) -> list[Any]:
    found: list[Any] = json.loads(text) if text else []
    return found


def data_files(table: Table) -> list[DataFile]:
    """The data files of the current snapshot."""
    return [each.file for each in live_files(table, table.current_snapshot())]


def live_files(table: Table, snapshot: Snapshot | None) -> list[LiveFile]:
    """The data files of a snapshot, with their deletes; pyiceberg's own planning raises over equality deletes."""
    return SnapshotFiles(table.metadata, Manifests(table.io), snapshot).listed


def file_totals(files: Sequence[DataFile], small_below_bytes: int) -> FileTotals:
    """Amounts of data files."""
    small = [file for file in files if file.file_size_in_bytes < small_below_bytes]
    together = Counter((file.spec_id, file.partition) for file in small)
    return FileTotals(
        rows=sum(file.record_count for file in files),
        files=len(files),
        size_bytes=sum(file.file_size_in_bytes for file in files),
        small_files=len(small),
        mergeable_files=sum(count for count in together.values() if count > 1),
    )


def _check_spread(table: Table, rows: pa.Table) -> None:
    """Refuses rows of too many partitions, before any file is written.

    Raises:
        TooManyPartitions: They are.
        PartitionTooLong: No folder can be named for one of them.
    """
    if table.spec().is_unpartitioned():
        return
    schema = table.schema()
    keys = {}
    for number, field in enumerate(table.spec().fields):
        source = schema.find_field(field.source_id)
        keys[str(number)] = field.transform.pyarrow_transform(source.field_type)(rows[source.name])
    partitions = pa.table(keys).group_by(list(keys)).aggregate([])
    if partitions.num_rows > MAX_PARTITIONS:
        raise TooManyPartitions(partitions.num_rows)
    for number, field in enumerate(table.spec().fields):
        source_type = schema.find_field(field.source_id).field_type
        for value in partitions[str(number)].to_pylist():
            if isinstance(value, str | bytes):
                text = field.transform.to_human_string(source_type, value)
                if len(f"{quote_plus(field.name)}={quote_plus(text)}") > _LONGEST_NAME:
                    raise PartitionTooLong(field.name)

"""Rows that a person wants gone: those that an SQL condition is true of, out of exactly the files that hold them.

The condition decides of each row by itself. So it is one expression, checked by its tree, without queries in it and
without functions whose answer changes from call to call; DuckDB then counts the rows of each file that it is true of,
and, while a file is written anew, says again which they are. Both have to agree before anything is committed.

The files of a partition that hold such rows are replaced in one commit, as a compaction does it: whoever merges one of
them meanwhile wins or loses, and the loser plans anew. The position stays: the source's rows count as landed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as ds

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.facts import Deletion, WaitingRows
from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import hive_pairs
from datalake_assets.core.row_texts import QuarantinedRow, row_from_text
from datalake_assets.core.schema import schema_from_json
from datalake_assets.errors import (
    CommitConflict,
    CorruptLake,
    DatalakeError,
    ObjectNotFound,
    UnreadableFile,
)
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.commit import Change, Loaded, Planned
from datalake_assets.lake.compaction import as_inputs, footer_of
from datalake_assets.lake.compaction_inputs import Inputs
from datalake_assets.lake.compaction_jobs import staging_opener
from datalake_assets.lake.layout import FeedFolder, discarded_folder, quarantine_folder
from datalake_assets.lake.quarantined_rows import quarantine_objects, take_out
from datalake_assets.lake.row_conditions import RowCondition, open_condition
from datalake_assets.lake.scan import committed_files, with_given
from datalake_assets.lake.sql_gate import SqlRefused
from datalake_assets.lake.store.base import StagedFile, Store
from datalake_assets.lake.store.swap import retried
from datalake_assets.parquet.decodable import ROW_GROUPS_HELD
from datalake_assets.parquet.failed_requests import failed_request
from datalake_assets.parquet.rewrite import Rewritten, rewrite
from datalake_assets.parquet.rewrite_settings import RewriteSettings
from datalake_assets.parquet.writer import ParquetSettings

__all__ = ["delete_rows", "deletion_plan", "waiting_rows"]

logger = logging.getLogger(__name__)

Mask: TypeAlias = npt.NDArray[np.bool_]

#: Times that a partition is begun anew because somebody else replaced one of its files meanwhile.
ATTEMPTS = 20


def waiting_rows(store: Store, feed: Feed, where: str, schema: pa.Schema, *, delete: bool = False) -> WaitingRows:
    """Looks for rows beside a feed's table that a condition is true of, and deletes them if that is wanted.

    Args:
        store: The lake.
        feed: The feed.
        where: The condition.
        schema: The columns that a reader of the feed sees.
        delete: Whether to delete these rows there.
    """
    matching: set[str] = set()
    undecided: set[str] = set()
    with open_condition(where, schema) as condition:

        def is_gone(path: str, rows: Sequence[QuarantinedRow]) -> list[bool]:
            found = _decided(condition, schema, path, rows)
            for row, matches in zip(rows, found, strict=True):
                if matches is None:
                    undecided.add(row.identity)
                elif matches:
                    matching.add(row.identity)
            return [bool(each) for each in found]

        for folder in (quarantine_folder(feed), discarded_folder(feed)):
            if delete:
                take_out(store, folder, is_gone)
            else:
                for _, path, rows in quarantine_objects(store, folder):
                    is_gone(path, rows)
    return WaitingRows(len(matching), len(undecided - matching))


def _known_columns(condition: RowCondition, row: QuarantinedRow) -> bytes | None:
    """A decoded row without columns that are none of the feed's, or of another type; None if these would decide."""
    others = set(schema_from_json(row.columns).names) if row.columns else set()
    if not others:
        return row.raw.encode()
    if condition.names & {name.lower() for name in others}:
        return None
    document = json.loads(row.raw)
    if not isinstance(document, dict):
        return None
    return json.dumps({name: value for name, value in document.items() if name not in others}).encode()


def _decided(
    condition: RowCondition, schema: pa.Schema, path: str, rows: Sequence[QuarantinedRow]
) -> list[bool | None]:
    """Whether the condition is true of each row; None where it cannot be told."""
    given = {name: value for name, value in hive_pairs(path) if name in schema.names}
    found: list[bool | None] = [None] * len(rows)
    values: dict[int, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        with suppress(ValueError, pa.ArrowException):
            known = _known_columns(condition, row)
            if row.decoded and known is not None:
                typed = {name: pa.scalar(text).cast(schema.field(name).type).as_py() for name, text in given.items()}
                values[number] = row_from_text(known, schema) | typed
    try:
        table = _table(values.values(), schema)
    except _NOT_OF_ITS_TYPE:  # one by one
        values = {number: each for number, each in values.items() if _is_of_its_types(each, schema)}
        table = _table(values.values(), schema)
    mask = condition.matching(table) if values else ()
    for number, matches in zip(values, mask, strict=True):
        found[number] = bool(matches)
    return found


#: What Arrow raises of a value that is not of its column's type.
_NOT_OF_ITS_TYPE = (ValueError, TypeError, ArithmeticError, pa.ArrowException)


def _table(rows: Collection[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    columns = [pa.array([each[field.name] for each in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _is_of_its_types(row: Mapping[str, Any], schema: pa.Schema) -> bool:
    with suppress(*_NOT_OF_ITS_TYPE):
        return bool(_table([row], schema).num_rows)
    return False


def deletion_plan(folder: FeedFolder, key: str, where: str) -> Deletion:
    """Does what `TableKeeper.deletion_plan` promises, for the feed of a folder."""
    return _retried(lambda: _Partition(folder, key, where).planned(folder.log(key).load()))


def delete_rows(folder: FeedFolder, key: str, where: str, *, run_id: str = "") -> Deletion:
    """Does what `TableKeeper.delete_rows` promises, for the feed of a folder."""
    folder.probe()
    return _retried(lambda: _Partition(folder, key, where).delete(run_id))


def _retried(run: Callable[[], Deletion]) -> Deletion:
    return retried(run, attempts=ATTEMPTS, on=(CommitConflict,))


class _Partition:
    """One partition that rows are deleted of."""

    def __init__(self, folder: FeedFolder, key: str, where: str) -> None:
        self._folder, self._key, self._where = folder, key, where
        self._log = folder.log(key)

    def planned(self, loaded: Loaded) -> Deletion:
        """How many rows of which files match."""
        dataset = self._dataset(loaded.manifest)
        with open_condition(self._where, dataset.schema) as condition:
            return self._counted(condition, loaded.manifest, dataset)

    def delete(self, run_id: str) -> Deletion:
        """Rewrites the files that have such rows, and commits."""
        self._folder.state.to_write()
        loaded = self._log.settle(self._log.load())
        dataset = self._dataset(loaded.manifest)
        with open_condition(self._where, dataset.schema) as condition:
            found = self._counted(condition, loaded.manifest, dataset)
            if not found.matching:
                return found
            commit_id = self._folder.new_id()
            metadata = footer_of(self._folder, loaded.manifest, commit_id=commit_id, run_id=run_id)
            files = self._rewritten(condition, loaded.manifest, dataset, found.matching, metadata)
        after = self._committed(loaded, found, Change(commit_id, "erase", files, lambda _: None, run_id))
        partition = self._folder.report(self._key, after, before=loaded.manifest)
        self._folder.summary.merge([partition], removed=(), at=None)
        return replace(found, partition=partition)

    def _dataset(self, manifest: Manifest) -> ds.FileSystemDataset:
        return committed_files(self._folder, [self._key], self._folder.state.load().schema, lambda _: [manifest])

    def _counted(self, condition: RowCondition, manifest: Manifest, dataset: ds.FileSystemDataset) -> Deletion:
        matching, read = {}, 0
        for file, fragment in zip(manifest.files, dataset.get_fragments(), strict=True):
            one = ds.FileSystemDataset([fragment], dataset.schema, dataset.format, dataset.filesystem)
            with self._gone_named(file):
                rows, count = condition.count(one)
            if rows != file.rows:
                where = self._log.key_of(file.name)
                raise CorruptLake(where, f"{rows} rows, {file.rows} were committed", cure="look with 'datalake verify'")
            if count:
                matching[file.name] = count
                read += file.size_bytes
        return Deletion(self._key, manifest.rows, len(manifest.files), matching, read)

    @contextmanager
    def _gone_named(self, file: DataFile) -> Iterator[None]:
        """Tells a file that was merged meanwhile from one that is missing, or cannot be read.

        Raises:
            CommitConflict: It was merged, or replaced.
        """
        try:
            yield
        except (ObjectNotFound, UnreadableFile, OSError, SqlRefused, pa.ArrowException) as error:
            if not any(file == each for each in self._log.load().manifest.files):
                raise CommitConflict(self._log.data_folder, "a file was merged or replaced meanwhile") from error
            key = self._log.key_of(file.name)
            if self._folder.data_store.head(key) is None:
                raise CorruptLake(key, "a committed file is gone", cure="look with 'datalake verify'") from error
            if (failure := failed_request(error, key)) is not None:
                raise failure from error
            if isinstance(error, DatalakeError):
                raise
            raise CorruptLake(key, f"cannot be read: {' '.join(str(error).split())}") from error

    def _rewritten(
        self,
        condition: RowCondition,
        manifest: Manifest,
        dataset: ds.FileSystemDataset,
        matching: Mapping[str, int],
        metadata: Mapping[str, str],
    ) -> tuple[tuple[StagedFile, DataFile], ...]:
        """The rows that stay of each file that has others, staged; all or none."""
        # readers of a version learn its columns from a file, though it have no rows
        keeps_one = self._folder.feed.kind is FeedKind.TABLE and manifest.rows == sum(matching.values())
        staged: list[tuple[StagedFile, DataFile]] = []
        try:
            for file, fragment in zip(manifest.files, dataset.get_fragments(), strict=True):
                count = matching.get(file.name, 0)
                if not count or (count == file.rows and not keeps_one):
                    continue
                keeps_one = keeps_one and count != file.rows
                given = ds.get_partition_keys(fragment.partition_expression)
                keep = partial(_kept, condition, dataset.schema, given)
                with self._gone_named(file):
                    staged += self._without(file, keep, metadata, rows=file.rows - count)
        except BaseException:
            self._discard(staged)
            raise
        return tuple(staged)

    def _without(
        self, file: DataFile, keep: Callable[[pa.Table], pa.Table], metadata: Mapping[str, str], *, rows: int
    ) -> list[tuple[StagedFile, DataFile]]:
        """One file written anew, by the rewriter's rules."""
        store = self._folder.data_store
        inputs = Inputs(store, self._log.key_of, [file], adopted=False, may_copy=False)
        with closing(inputs):
            given = [replace(each, keep=keep, copy_source=None) for each in inputs.files]
            opener = staging_opener(
                store, self._log.data_folder, prefix="data", at=self._folder.store.now(), new_id=self._folder.new_id
            )
            done: Rewritten[StagedFile] = rewrite(given, self._settings(), opener, metadata=metadata)
        where = self._log.key_of(file.name)
        outputs = [(staged, as_inputs(one, [file])) for staged, one in done.outputs]
        if file.name in done.rejected:
            raise UnreadableFile(where, f"it cannot be written anew: {done.rejected[file.name]}")
        if sum(one.rows for _, one in outputs) != rows:
            self._discard(outputs)
            raise CorruptLake(where, "the condition was true of other rows at a second look; nothing was deleted")
        return outputs

    def _settings(self) -> RewriteSettings:
        written = self._folder.feed.format
        return RewriteSettings(
            parquet=ParquetSettings(
                compression=written.compression,
                profile=written.profile,
                target_file_bytes=written.target_file_size_bytes,
                row_group_bytes=written.row_group_bytes,
            ),
            verify="full",
            time_column=self._folder.feed.row_time,
            workers=1,
            row_bytes=CompactionRequest().memory_bytes // ROW_GROUPS_HELD,
        )

    def _discard(self, staged: Sequence[tuple[StagedFile, DataFile]]) -> None:
        for each, _ in staged:
            self._folder.data_store.discard_staged(each)

    def _committed(self, loaded: Loaded, found: Deletion, change: Change) -> Manifest:
        gone = {file.name: file for file in loaded.manifest.files if file.name in found.matching}

        def planned(base: Manifest) -> Planned:
            there = {file.name: file for file in base.files}
            if any(there.get(name) != file for name, file in gone.items()):
                raise CommitConflict(self._log.data_folder, "a file was merged or replaced meanwhile")
            return Planned(remove=tuple(gone))

        after, _ = self._log.commit(replace(change, plan=planned), base=loaded)
        self._folder.state.to_write()  # else it was of what the feed was before, and readers still get the rows
        logger.info("deleted %d rows of %s", found.rows_deleted, self._log.data_folder)
        return after.manifest


def _kept(condition: RowCondition, schema: pa.Schema, given: Mapping[str, object], rows: pa.Table) -> pa.Table:
    """The rows of a piece of a file that stay."""
    return rows.filter(pa.array(~condition.matching(with_given(rows, schema, given))))

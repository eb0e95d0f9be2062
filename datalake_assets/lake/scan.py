"""Exact reads: the files that the manifests name, pruned by partition before they are opened.

A partition's path gives its rows columns, of the types that `PartitionColumns` says. Who gives such a column
is decided for each file: its own path, if that names the column, else the file itself, else null.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from operator import itemgetter
from types import MappingProxyType
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import hive_pairs, partition_columns
from datalake_assets.core.schema import RESERVED_NAMES, schema_from_json, spellings
from datalake_assets.core.verdicts import Drift, PartitionFooters
from datalake_assets.errors import CorruptLake, LakeError, SnapshotExpired
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.nested_scans import scanner_of
from datalake_assets.lake.pruning import PartitionColumns, matching_paths, may_prune
from datalake_assets.lake.store.swap import retried
from datalake_assets.lake.table import TableReader, TableSnapshot
from datalake_assets.parquet.adopted_footer import INT96_UNIT
from datalake_assets.parquet.decoding import is_dense, open_parquet, tables
from datalake_assets.parquet.failed_requests import failed_request
from datalake_assets.parquet.schemas import conform_table
from datalake_assets.parquet.stated_bounds import has_cut_bounds

__all__ = ["BoundedDataset", "committed_files", "partition_footers", "scan", "with_given"]

logger = logging.getLogger(__name__)

#: Times that a scan begins because a file was gone before the first batch.
ATTEMPTS = 5
#: Batches and files that are read ahead; bounds the memory of a scan.
BATCH_READAHEAD, FILE_READAHEAD = 4, 2
#: Decoded bytes of a row group from which on it is read in pieces.
DENSE_BYTES = 128 << 20
#: Footers that are read before the first batch.
AT_ONCE = 32


def scan(
    table: TableReader,
    *,
    columns: Sequence[str] | None = None,
    where: ds.Expression | None = None,
    partitions: Sequence[str] | None = None,
) -> pa.RecordBatchReader:
    """Streams committed rows. Partition columns (``year``, … or ``version``) come last."""

    def begin() -> pa.RecordBatchReader:
        snapshot = table.snapshot(partitions)
        schema, batches = _batches(snapshot.dataset(where=where), columns, where)
        with _expiry_named(snapshot, has_begun=False):
            first = next(batches, None)
        return pa.RecordBatchReader.from_batches(schema, _guarded(snapshot, first, batches))

    return retried(begin, attempts=ATTEMPTS, on=(SnapshotExpired,))


_Columns: TypeAlias = list[str] | Mapping[str, ds.Expression] | None


def _batches(
    dataset: ds.Dataset, columns: Sequence[str] | None, where: ds.Expression | None
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Rows, columns under one name each, however files spell it."""
    others = {other for field in dataset.schema for other in spellings(field)}
    if not others and (where is None or may_prune(where, dataset.schema)):
        named = list(columns) if columns is not None else None
        scanner = _scanner(dataset, columns=named, where=where)
        return scanner.projected_schema, iter(scanner.to_batches())
    merged = {field.name: _merged(field) for field in dataset.schema if field.name not in others}
    scanner = _scanner(dataset, columns=merged, where=None)  # a filter would see one spelling alone, or bounds
    chosen = list(merged) if columns is None else list(columns)
    schema = pa.schema([dataset.schema.field(name).remove_metadata() for name in chosen])
    return schema, _filtered(scanner, schema, where)


def _merged(field: pa.Field) -> ds.Expression:
    """A column, from whichever spelling of its name a file has."""
    found = [ds.field(name) for name in (field.name, *spellings(field))]
    return pc.coalesce(*found) if len(found) > 1 else found[0]


def _filtered(scanner: ds.Scanner, schema: pa.Schema, where: ds.Expression | None) -> Iterator[pa.RecordBatch]:
    for batch in scanner.to_batches():
        rows = pa.Table.from_batches([batch])
        kept = rows if where is None else rows.filter(where)
        yield from kept.select(schema.names).cast(schema).to_batches()


def _scanner(dataset: ds.Dataset, *, columns: _Columns, where: ds.Expression | None) -> ds.Scanner:
    """A scanner of bounded memory."""
    return dataset.scanner(
        columns=columns,
        filter=where,
        batch_readahead=BATCH_READAHEAD,
        fragment_readahead=FILE_READAHEAD,
    )


class BoundedDataset(ds.FileSystemDataset):  # type: ignore[misc]  # Arrow has no types
    """Files of others: Arrow's scanner decodes whole row groups, and some of theirs have no bound.

    DuckDB asks a dataset for its scanner, too, and so has the same bound.

    Attributes:
        left_out: Files that do not fit the others, and so are no part of it, with the reason.
    """

    left_out: Mapping[str, str] = MappingProxyType({})

    def scanner(
        self,
        columns: _Columns = None,
        filter: ds.Expression | None = None,  # noqa: A002  Arrow's name
        **options: Any,
    ) -> ds.Scanner:
        """A scanner whose batches are read as they are asked for."""
        schema = super().scanner(columns=columns, filter=filter, **options).projected_schema
        batches = self._batches(columns, filter)
        return scanner_of(batches, schema)

    def _batches(self, columns: _Columns, where: ds.Expression | None) -> Iterator[pa.RecordBatch]:
        fragments = list(self.get_fragments(filter=where))
        # a filter reads columns of its own
        read = columns if isinstance(columns, list) and where is None else None
        with ThreadPoolExecutor(FILE_READAHEAD, thread_name_prefix="footers") as pool:
            for start in range(0, len(fragments), AT_ONCE):
                some = fragments[start : start + AT_ONCE]
                seen = zip(pool.map(lambda fragment: _is_dense(self, fragment, read), some), some, strict=True)
                for is_dense_run, run in groupby(seen, key=itemgetter(0)):
                    files = [fragment for _, fragment in run]
                    if is_dense_run:
                        for fragment in files:
                            yield from _in_pieces(self, fragment, columns, where)
                    else:
                        plain = ds.FileSystemDataset(files, self.schema, self.format, self.filesystem)
                        try:
                            yield from _scanner(plain, columns=columns, where=where).to_batches()
                        except pa.ArrowInvalid as error:
                            raise _by_column(plain, read, error) from error


def _is_dense(dataset: ds.FileSystemDataset, fragment: ds.ParquetFileFragment, columns: Sequence[str] | None) -> bool:
    """Whether a file is to be read in pieces: Arrow's scanner would hold too much, or end over its statistics."""
    with dataset.filesystem.open_input_file(fragment.path) as opened:
        parquet = open_parquet(opened, int96_unit=INT96_UNIT)
        return has_cut_bounds(opened) or is_dense(parquet, opened, limit_bytes=DENSE_BYTES, columns=columns)


def _by_column(dataset: ds.FileSystemDataset, columns: Sequence[str] | None, error: pa.ArrowInvalid) -> pa.ArrowInvalid:
    """The error of a value that its column cannot hold, with the column's name, which Arrow's scanner leaves out."""
    schema = dataset.schema if columns is None else pa.schema([each for each in dataset.schema if each.name in columns])
    for fragment in dataset.get_fragments():
        try:
            with dataset.filesystem.open_input_file(fragment.path) as opened:
                for piece in tables(open_parquet(opened, int96_unit=INT96_UNIT), source=opened):
                    with_given(piece, schema, {})
        except pa.ArrowInvalid as named:
            return named
        except OSError:  # it is gone since
            continue
    return error


def _in_pieces(
    dataset: ds.FileSystemDataset,
    fragment: ds.ParquetFileFragment,
    columns: _Columns,
    where: ds.Expression | None,
) -> Iterator[pa.RecordBatch]:
    """The batches of one file, as the scanner of the dataset would give them."""
    given = ds.get_partition_keys(fragment.partition_expression)
    with dataset.filesystem.open_input_file(fragment.path) as opened:
        pieces = tables(open_parquet(opened, int96_unit=INT96_UNIT), source=opened)
        batches = (batch for piece in pieces for batch in with_given(piece, dataset.schema, given).to_batches())
        yield from scanner_of(batches, dataset.schema, columns=columns, where=where).to_batches()


def with_given(table: pa.Table, schema: pa.Schema, given: Mapping[str, object]) -> pa.Table:
    """Rows of a file with the columns of the whole dataset, those that its path gives among them."""
    own = table.select([name for name in table.column_names if name in schema.names and name not in given])
    for name, value in given.items():
        if name in schema.names:
            kind = schema.field(name).type
            own = own.append_column(name, pa.repeat(pa.scalar(value, kind), table.num_rows))
    return conform_table(own, schema.remove_metadata()).replace_schema_metadata(schema.metadata)


def committed_files(
    folder: FeedFolder,
    keys: Sequence[str],
    schema: str | None,
    manifests: Callable[[Sequence[str]], Sequence[Manifest]],
    *,
    where: ds.Expression | None = None,
) -> ds.FileSystemDataset:
    """The files that manifests name, as an Arrow dataset.

    Args:
        folder: The feed.
        keys: The partitions.
        schema: The feed's, encoded; None before its first commit.
        manifests: Gives those of some of the partitions.
        where: Partitions that cannot match it are left out without asking for their manifests.

    Raises:
        SnapshotExpired: A manifest names other files by now, and those that it named are gone.
        ConfigError: Columns of some have other names than the table's by now.
    """
    paths = [folder.partition_path(key) for key in keys]
    columns = PartitionColumns(schema_from_json(schema) if schema else pa.schema([]), paths, inferred=folder.is_adopted)
    kept = matching_paths(paths, columns, where)
    chosen = [key for key, path in zip(keys, paths, strict=True) if path in kept]
    found = _dataset(folder, list(zip(chosen, manifests(chosen), strict=True)), columns)
    folder.check_names(found)
    return found


def _dataset(
    folder: FeedFolder, manifests: Sequence[tuple[str, Manifest]], columns: PartitionColumns
) -> ds.FileSystemDataset:
    store = folder.data_store
    there = {info.key for info in store.list(folder.data_root)} if folder.is_adopted else None
    files, expressions, gone = [], [], []
    left_out: dict[str, str] = {}
    for key, manifest in manifests:
        expression = columns.expression(folder.partition_path(key))
        for file in manifest.files:
            name = folder.file_key(key, file.name)
            if file.left_out:
                left_out[name] = file.left_out
                logger.info("%s is left out of a scan: %s", name, file.left_out)
            elif there is not None and name not in there:
                gone.append((key, file))
            else:
                files.append(store.path(name))
                expressions.append(expression)
    _check_removed_by_others(folder, gone)
    dataset = ds.FileSystemDataset.from_paths(
        files,
        schema=_with_spellings(columns.schema),
        format=_format(folder),
        filesystem=store.filesystem(),
        partitions=expressions,
    )
    if not folder.is_adopted:  # row groups of our own have a bounded size
        return dataset
    bounded = BoundedDataset(list(dataset.get_fragments()), dataset.schema, dataset.format, dataset.filesystem)
    bounded.left_out = left_out
    return bounded


def _check_removed_by_others(folder: FeedFolder, gone: Sequence[tuple[str, DataFile]]) -> None:
    """Tells files that others removed, which a scan leaves out, from those merged since the manifest was read.

    Args:
        folder: An adopted folder.
        gone: By partition, files of its manifest that a listing after it did not find.

    Raises:
        SnapshotExpired: The manifest does not name one of them any more: its rows are in other files.
    """
    for key, files in groupby(gone, key=itemgetter(0)):
        now = {file.name for file in folder.log(key).load().manifest.files}
        for _, file in files:
            if file.name not in now:
                raise SnapshotExpired(folder.feed.path, "a file was compacted or replaced before it was read")
            logger.info("%s is left out of a scan: it is gone", folder.file_key(key, file.name))


def _with_spellings(schema: pa.Schema) -> pa.Schema:
    """The schema with all spellings of its columns as columns of their own, since Arrow matches names exactly."""
    others = [pa.field(other, field.type) for field in schema for other in spellings(field)]
    return pa.schema([*schema, *others], metadata=schema.metadata) if others else schema


def _format(folder: FeedFolder) -> ds.ParquetFileFormat:
    """Others' files may have INT96 timestamps, which overflow in nanoseconds, and checksums of pages."""
    if not folder.is_adopted:
        return ds.ParquetFileFormat()
    return ds.ParquetFileFormat(
        read_options=ds.ParquetReadOptions(coerce_int96_timestamp_unit=INT96_UNIT),
        default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True),
    )


@contextmanager
def _expiry_named(snapshot: TableSnapshot, *, has_begun: bool) -> Iterator[None]:
    """Tells reads that failed because files were replaced from those of files that nobody removed.

    Args:
        snapshot: What is being read.
        has_begun: Rows were handed on, so that the read cannot begin again: whoever does will learn why a file is gone.

    Raises:
        SnapshotExpired: What was being read has expired: a server may say anything when that happens amid its answer.
        CorruptLake: A file that is committed is gone.
    """
    try:
        yield
    except (OSError, pa.ArrowInvalid) as error:
        is_gone = isinstance(error, OSError) and _file_is_gone(error)
        if (has_begun and is_gone) or _has_expired(snapshot):
            reason = "a file was compacted or replaced during the read"
            raise SnapshotExpired(snapshot.feed.path, reason) from error
        if is_gone:
            cure = f"'datalake verify {snapshot.feed.name}' names what is missing"
            raise CorruptLake(snapshot.feed.path, f"a committed file is gone: {error}", cure=cure) from error
        if (failure := failed_request(error, snapshot.feed.path)) is not None:
            raise failure from error
        raise


def _has_expired(snapshot: TableSnapshot) -> bool:
    try:
        return snapshot.has_expired()
    except LakeError:
        return False


def _file_is_gone(error: OSError) -> bool:
    # Arrow's S3: NO_SUCH_KEY, RESOURCE_NOT_FOUND, or in words
    text = str(error).lower().replace("_", " ")
    return isinstance(error, FileNotFoundError) or "no such key" in text or "not found" in text


def _guarded(
    snapshot: TableSnapshot, first: pa.RecordBatch | None, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    if first is None:
        return
    yield first
    with _expiry_named(snapshot, has_begun=True):
        yield from batches


def partition_footers(folder: FeedFolder, key: str, dataset: ds.FileSystemDataset) -> PartitionFooters:
    """Opens every file of a partition and compares its columns with the feed's; one that cannot be read is a drift.

    Raises:
        SnapshotExpired: A file went away meanwhile: look again.
    """
    rows, drifts = 0, []
    for fragment in dataset.get_fragments():
        try:
            fragment.ensure_complete_metadata()
            drift = _drift(folder, fragment, dataset.schema)
            rows += fragment.metadata.num_rows
        except FileNotFoundError as error:
            raise SnapshotExpired(folder.feed.path, "a file was compacted or replaced during the read") from error
        except (OSError, pa.ArrowException) as error:
            if (failure := failed_request(error, fragment.path)) is not None:
                raise failure from error
            drift = f"cannot be read: {' '.join(str(error).split())}"
        if drift:
            drifts.append(Drift(fragment.path.rpartition("/")[2], drift))
    others = {other for field in dataset.schema for other in spellings(field)}
    names = [name for name in dataset.schema.names if name not in others]
    columns = sum(name not in partition_columns(folder.feed) for name in names)
    return PartitionFooters(key, len(dataset.files), rows, columns, tuple(drifts))


def _drift(folder: FeedFolder, fragment: ds.ParquetFileFragment, contract: pa.Schema) -> str:
    """How a file's columns differ from the contract; older files of a feed that evolves, or did, lack newer columns.

    These are nullable, and stand at the contract's end (`datalake_assets.core.schema.evolve`).
    """
    found = fragment.physical_schema
    extra = [name for name in found.names if name not in contract.names]
    # an adopted folder's path gives that, and whatever the files say is ignored
    given = {name for part in fragment.path.split("/") for name, _ in hive_pairs(part)} if folder.is_adopted else set()
    other = [
        f"{name!r} is {found.field(name).type}, not {contract.field(name).type}"
        for name in found.names
        if name in contract.names and name not in given and found.field(name).type != contract.field(name).type
    ]
    others = {other for field in contract for other in spellings(field)}
    unseen = [field.name for field in contract if not {field.name, *spellings(field)} & {*found.names}]
    paths = RESERVED_NAMES.union(partition_columns(folder.feed), others)
    missing = [name for name in unseen if name not in paths]
    own = [name for name in contract.names if name not in paths]
    is_older = missing == own[len(own) - len(missing) :] and all(contract.field(name).nullable for name in missing)
    may_lack = folder.feed.schema_policy != "freeze" or (is_older and not folder.is_adopted)
    parts = [f"has a column {name!r} that the feed hasn't" for name in extra]
    parts += [f"has no column {name!r}" for name in ([] if may_lack else missing)]
    return "; ".join([*parts, *other])

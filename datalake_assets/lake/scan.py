"""Exact reads: the files that the manifests name, pruned by partition before they are opened."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs

from datalake_assets.config import FeedKind
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.schema import schema_from_json
from datalake_assets.errors import LakeError, SnapshotExpired
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.partition_columns import PartitionColumns
from datalake_assets.parquet.foreign import INT96_UNIT

__all__ = ["exact_dataset", "scan", "scanner_of"]

logger = logging.getLogger(__name__)

#: Manifests that are read at once.
THREADS = 16
#: Times that the manifests are read again because a file was gone before the first batch.
ATTEMPTS = 5
#: Batches and files that are read ahead; bounds the memory of a scan.
BATCH_READAHEAD, FILE_READAHEAD = 4, 2


def scan(
    folder: FeedFolder,
    *,
    columns: Sequence[str] | None = None,
    where: ds.Expression | None = None,
    partitions: Sequence[str] | None = None,
) -> pa.RecordBatchReader:
    """Streams committed rows; see `LakeTable.scan`. Partition columns (``year``, … or ``version``) come last."""

    def committed() -> ds.Dataset:
        return exact_dataset(folder, where=where, partitions=partitions)

    for attempt in range(ATTEMPTS):
        dataset = committed()
        scanner = scanner_of(dataset, columns=columns, where=where)
        batches = iter(scanner.to_batches())
        try:
            first = next(batches, None)
        except (OSError, pa.ArrowInvalid) as error:
            if attempt == ATTEMPTS - 1 or not _has_expired(error, dataset, committed):
                raise
            continue
        guarded = _guarded(folder, first, batches, partial(_has_expired, dataset=dataset, committed=committed))
        return pa.RecordBatchReader.from_batches(scanner.projected_schema, guarded)
    raise AssertionError


def scanner_of(
    dataset: ds.Dataset, *, columns: Sequence[str] | None = None, where: ds.Expression | None = None
) -> ds.Scanner:
    """A scanner of bounded memory."""
    return dataset.scanner(
        columns=list(columns) if columns is not None else None,
        filter=where,
        batch_readahead=BATCH_READAHEAD,
        fragment_readahead=FILE_READAHEAD,
    )


def exact_dataset(
    folder: FeedFolder, *, where: ds.Expression | None = None, partitions: Sequence[str] | None = None
) -> ds.Dataset:
    """The committed files as an Arrow dataset.

    Args:
        folder: The feed.
        where: Partitions that cannot match it are left out without reading their manifests.
        partitions: Keys to read; None: all of a stream, the current version of a table.
    """
    state = folder.state.load()
    if partitions is None:
        current = state.current
        newest = (f"v{current.number}",) if current else ()
        partitions = newest if folder.feed.kind is FeedKind.TABLE else folder.partition_keys()
    paths = [folder.partition_path(key) for key in partitions]
    schema = schema_from_json(state.schema) if state.schema else pa.schema([])
    columns = PartitionColumns(schema, paths, inferred=folder.is_foreign)
    kept = _pruned(paths, columns, where)
    keys = [key for key, path in zip(partitions, paths, strict=True) if path in kept]
    with ThreadPoolExecutor(THREADS) as pool:
        manifests = list(pool.map(lambda key: folder.log(key).load().manifest, keys))
    return _dataset(folder, list(zip(keys, manifests, strict=True)), columns)


def _dataset(folder: FeedFolder, manifests: Sequence[tuple[str, Manifest]], columns: PartitionColumns) -> ds.Dataset:
    store = folder.data_store
    there = {info.key for info in store.list(folder.data_root)} if folder.is_foreign else None
    files, expressions = [], []
    for key, manifest in manifests:
        expression = columns.expression(folder.partition_path(key))
        for file in manifest.files:
            name = f"{folder.data_folder(key)}/{file.name}"
            if file.left_out or (there is not None and name not in there):
                logger.info("%s is left out of a scan: %s", name, file.left_out or "it is gone")
                continue
            files.append(store.path(name))
            expressions.append(expression)
    return ds.FileSystemDataset.from_paths(
        files,
        schema=columns.schema,
        format=_format(folder),
        filesystem=store.filesystem(),
        partitions=expressions,
    )


def _format(folder: FeedFolder) -> ds.ParquetFileFormat:
    """Others' files may have INT96 timestamps, which overflow in nanoseconds."""
    unit = {"coerce_int96_timestamp_unit": INT96_UNIT} if folder.is_foreign else {}
    return ds.ParquetFileFormat(read_options=ds.ParquetReadOptions(**unit))


def _pruned(paths: Sequence[str], columns: PartitionColumns, where: ds.Expression | None) -> set[str]:
    """The partitions that can match ``where``, judged by their paths alone."""
    if where is None or not paths:
        return set(paths)
    dataset = ds.FileSystemDataset.from_paths(
        [f"{number}" for number in range(len(paths))],
        schema=columns.schema,
        format=ds.ParquetFileFormat(),
        filesystem=pafs.LocalFileSystem(),
        partitions=[columns.expression(path) for path in paths],
    )
    return {paths[int(fragment.path)] for fragment in dataset.get_fragments(filter=where)}


def _has_expired(error: Exception, dataset: ds.Dataset, committed: Callable[[], ds.Dataset]) -> bool:
    """Whether a read failed because a file went: a server may say anything when that happens amid its answer."""
    if isinstance(error, OSError) and _file_is_gone(error):
        return True
    try:
        return not set(dataset.files) <= set(committed().files)
    except LakeError:
        return False


def _file_is_gone(error: OSError) -> bool:
    # Arrow's S3: NO_SUCH_KEY, RESOURCE_NOT_FOUND, or in words
    text = str(error).lower().replace("_", " ")
    return isinstance(error, FileNotFoundError) or "no such key" in text or "not found" in text


def _guarded(
    folder: FeedFolder,
    first: pa.RecordBatch | None,
    batches: Iterator[pa.RecordBatch],
    has_expired: Callable[[Exception], bool],
) -> Iterator[pa.RecordBatch]:
    if first is None:
        return
    yield first
    try:
        yield from batches
    except (OSError, pa.ArrowInvalid) as error:
        if has_expired(error):
            raise SnapshotExpired(folder.feed.path, "a file was compacted or replaced during the read") from error
        raise

"""Former rows of items whose content has changed: the files that have some are written anew without them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datalake_assets.core.arrow_arrays import constant, of_texts
from datalake_assets.core.files import DataFile
from datalake_assets.core.manifest import Manifest
from datalake_assets.errors import CommitConflict, UnreadableFile
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import StagedFile
from datalake_assets.parquet.decoding import open_parquet, tables
from datalake_assets.parquet.failed_requests import answered
from datalake_assets.parquet.rolling import RollingWriter
from datalake_assets.parquet.schemas import conform_table

__all__ = ["Rest", "written_without"]


@dataclass(frozen=True, slots=True)
class Rest:
    """What was written.

    Attributes:
        removed: Names of the files that had former rows.
        staged: Their other rows, staged, by partition key.
    """

    removed: tuple[str, ...]
    staged: Mapping[str, Sequence[tuple[StagedFile, DataFile]]]


def written_without(
    folder: FeedFolder,
    key: str,
    base: Manifest,
    writer: RollingWriter[StagedFile],
    *,
    column: str,
    names: Sequence[str],
    schema: pa.Schema,
) -> Rest:
    """Writes the files of a partition anew that have rows of some items, without these rows.

    Args:
        folder: The feed's corner of the lake.
        key: The partition.
        base: Its manifest.
        writer: Takes the rows that stay; closed by this, or aborted.
        column: The column that has an item's name.
        names: The items'.
        schema: The feed's columns.

    Raises:
        CommitConflict: A file was merged meanwhile.
        UnreadableFile: A file cannot be read, or has columns that the feed has not.
    """
    gone = of_texts(sorted(set(names)))
    removed = []
    try:
        for file in base.files:
            with _opened(folder, key, file) as parquet:
                if column not in parquet.schema_arrow.names or not _has_any(parquet, column, gone):
                    continue
                removed.append(file.name)
                _write_rest(
                    parquet, writer, _Kept(column, gone, schema), file=file, where=folder.file_key(key, file.name)
                )
        return Rest(tuple(removed), writer.close())
    except BaseException:
        writer.abort()
        raise


@dataclass(frozen=True, slots=True)
class _Kept:
    """Rows that stay: those whose ``column`` is none of ``gone``, in the columns of ``schema``."""

    column: str
    gone: pa.Array
    schema: pa.Schema


def _write_rest(
    parquet: pq.ParquetFile, writer: RollingWriter[StagedFile], kept: _Kept, *, file: DataFile, where: str
) -> None:
    others = sorted(set(parquet.schema_arrow.names) - set(kept.schema.names))
    if others:
        raise UnreadableFile(where, f"it has column {others[0]!r}, which the feed has not")
    rows = 0
    for table in tables(parquet):
        rows += table.num_rows
        rest = table.filter(pc.invert(_is_in(table.column(kept.column), kept.gone)))
        for batch in conform_table(rest, kept.schema.remove_metadata()).combine_chunks().to_batches():
            writer.write(pa.RecordBatch.from_arrays(batch.columns, schema=kept.schema))
    if rows != file.rows:
        raise UnreadableFile(where, f"{rows} rows, {file.rows} were committed")


def _is_in(column: pa.ChunkedArray, names: pa.Array) -> pa.ChunkedArray:
    return pc.fill_null(pc.is_in(column.cast(pa.string()), value_set=names), constant(False))


def _has_any(parquet: pq.ParquetFile, column: str, names: pa.Array) -> bool:
    first, last = names[0].as_py(), names[-1].as_py()
    for number in range(parquet.num_row_groups):
        group = parquet.metadata.row_group(number)
        bounds = next(
            (group.column(each).statistics for each in range(group.num_columns) if _is_column(group, each, column)),
            None,
        )
        # bounds of texts are in the order of their bytes, as Python's are but for letters beyond the basic plane
        if bounds is not None and bounds.has_min_max and first.isascii() and last.isascii():
            lowest, highest = str(bounds.min), str(bounds.max)
            if lowest.isascii() and highest.isascii() and (highest < first or lowest > last):
                continue
        if pc.any(_is_in(parquet.read_row_group(number, columns=[column]).column(column), names)).as_py():
            return True
    return False


def _is_column(group: pq.RowGroupMetaData, number: int, name: str) -> bool:
    return bool(group.column(number).path_in_schema == name)


@contextmanager
def _opened(folder: FeedFolder, key: str, file: DataFile) -> Iterator[pq.ParquetFile]:
    """A data file to read; what Arrow and the store raise over it is ours afterwards."""
    store, at = folder.data_store, folder.file_key(key, file.name)
    with ExitStack() as opening:
        try:
            opening.enter_context(answered(at))
            source = opening.enter_context(store.filesystem().open_input_file(store.path(at)))
            yield open_parquet(source)
        except (pa.ArrowException, OSError) as error:
            if store.head(at) is None:
                raise CommitConflict(at, "it was merged by somebody else, or is gone") from error
            raise UnreadableFile(at, f"cannot be read: {str(error).splitlines()[0]}") from error

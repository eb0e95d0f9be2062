"""The rows of an Iceberg table that others write, as an Arrow dataset: with their deletes, and their schemas of before.

Most files have the table's columns as they are now, and no deletes. Arrow reads those by itself, with what a query
wants of them alone. All others go through `present_rows`, row by row as the table has them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pyarrow.types as pt
from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import PyArrowFileIO, schema_to_pyarrow
from pyiceberg.manifest import FileFormat
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata

from datalake_assets.errors import UnreadableFile
from datalake_assets.lake.iceberg.object_reads import Fetching, open_native
from datalake_assets.lake.iceberg.present_rows import PresentRows, same_fields
from datalake_assets.lake.iceberg.snapshot_files import LiveFile, SnapshotFiles, may_be_misnamed, may_lack_columns
from datalake_assets.lake.nested_scans import scanner_of
from datalake_assets.lake.scan import BoundedDataset
from datalake_assets.lake.table import Logged
from datalake_assets.parquet.decoding import open_parquet
from datalake_assets.parquet.failed_requests import failed_request

__all__ = ["PresentDataset", "arrow_schema", "stated_footers", "told_of"]

#: Files that are looked at before the first of them is read, and those whose deletes are held at once.
AT_ONCE = 32
#: Footers that are read at once.
THREADS = 8
_FORMAT = ds.ParquetFileFormat()


def arrow_schema(metadata: TableMetadata) -> pa.Schema:
    """The table's columns in Arrow; without "not null", which files of before may break, and Arrow refuses to read."""
    stated: pa.Schema = schema_to_pyarrow(metadata.schema(), include_field_ids=False)
    return pa.schema([pa.field(each.name, each.type) for each in stated])


def told_of(table: Table, files: SnapshotFiles, *, catalog: str = "") -> Logged:
    """What engines need to read a table as it was loaded."""
    snapshot = table.current_snapshot()
    return Logged(
        format="iceberg",
        location=table.location().rstrip("/"),
        version=str(snapshot.snapshot_id) if snapshot is not None else "",
        files=tuple(sorted(files.data)),
        why_not_plain=_why_not_plain(table.metadata, files),
        metadata=table.metadata_location,
        catalog=catalog,
    )


def _why_not_plain(metadata: TableMetadata, files: SnapshotFiles) -> str:
    """Why whoever reads files by the names of their columns gets other rows than the table has; empty if not."""
    return _odd_files(metadata, files) or _odd_columns(metadata)


def _odd_files(metadata: TableMetadata, files: SnapshotFiles) -> str:
    if any(file.deletes for file in files.data.values()):
        return "some of its rows are deleted by files of their own"
    if files.repeated:
        return "its snapshot names a file twice"
    if any(file.file.file_format != FileFormat.PARQUET for file in files.data.values()):
        return "it has files that are no Parquet"
    if any(may_lack_columns(file.file, metadata) for file in files.data.values()):
        return "it may have files without a column that they are partitioned by"
    return ""


def _odd_columns(metadata: TableMetadata) -> str:
    now = {each.field_id: (each.name, str(each.field_type)) for each in metadata.schema().fields}
    names = {name for name, _ in now.values()}
    for schema in metadata.schemas:
        for each in schema.fields:
            was = (each.name, str(each.field_type))
            if now.get(each.field_id, was) != was or (each.field_id not in now and each.name in names):
                return f"its column {each.name!r} was renamed, or is of another type than before"
    if may_be_misnamed(metadata):
        return "schemas of before are gone from its metadata, and columns may have had other names"
    if any(getattr(each, "initial_default", None) is not None for each in metadata.schema().fields):
        return "a column has a default that older files lack"
    return ""


class PresentDataset(BoundedDataset):
    """Some data files of a snapshot; read when it is scanned, and of bounded memory.

    Arrow, and DuckDB, ask a dataset for its scanner: that is all of a dataset that this one is.
    """

    _metadata: TableMetadata
    _io: FileIO
    _live: Sequence[LiveFile]
    _wanted: pa.Schema
    _repeated: frozenset[str]

    @classmethod
    def of(
        cls, metadata: TableMetadata, io: FileIO, files: Sequence[LiveFile], *, repeated: Collection[str] = ()
    ) -> PresentDataset:
        """The rows of these files.

        Args:
            metadata: Of the table.
            io: The table's.
            files: Which, with their deletes.
            repeated: Paths that the snapshot names twice: nobody can say which rows it means.
        """
        named = ds.FileSystemDataset.from_paths(
            [file.path for file in files],
            schema=arrow_schema(metadata),
            format=_FORMAT,
            filesystem=pafs.LocalFileSystem(),  # nothing is opened by it
        )
        made = cls(list(named.get_fragments()), named.schema, named.format, named.filesystem)
        made._metadata, made._io, made._live = metadata, io, tuple(files)
        made._repeated = frozenset(repeated)
        made._wanted = schema_to_pyarrow(metadata.schema(), include_field_ids=True)
        return made

    def _batches(self, columns: Any, where: ds.Expression | None) -> Iterator[pa.RecordBatch]:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="footers") as pool:
            for start in range(0, len(self._live), AT_ONCE):
                some = self._live[start : start + AT_ONCE]
                seen = zip(pool.map(self._is_plain, some), some, strict=True)
                for is_plain, run in groupby(seen, key=itemgetter(0)):
                    files = [file for _, file in run]
                    yield from self._plain(files, columns, where) if is_plain else self._brought(files, columns, where)

    def _is_plain(self, file: LiveFile) -> bool:
        """Whether Arrow reads it by itself: nested columns may say "not null" in places that cannot be cast away."""
        if file.why_unusable:
            raise UnreadableFile(file.path, f"it {file.why_unusable}; read the table with the engine that writes it")
        if file.path in self._repeated:
            raise UnreadableFile(file.path, "the table's snapshot names it twice")
        if (
            file.deletes
            or not isinstance(self._io, PyArrowFileIO)
            or any(pt.is_nested(one.type) for one in self.schema)
        ):
            return False
        with open_native(self._io, file.path, file.file.file_size_in_bytes) as source:
            parquet = open_parquet(source)
            _check_rows(file, parquet.metadata.num_rows)
            return same_fields(parquet.schema_arrow, self._wanted)

    def _plain(self, files: Sequence[LiveFile], columns: Any, where: ds.Expression | None) -> Iterator[pa.RecordBatch]:
        assert isinstance(self._io, PyArrowFileIO)  # noqa: S101  for mypy: no other file is plain
        io = self._io
        places = [io.parse_location(file.path, io.properties) for file in files]
        for (scheme, netloc), run in groupby(places, key=itemgetter(0, 1)):
            plain = ds.FileSystemDataset.from_paths(
                [path for _, _, path in run],
                schema=self.schema,
                format=_FORMAT,
                filesystem=io.fs_by_scheme(scheme, netloc),
            )
            bounded = BoundedDataset(list(plain.get_fragments()), plain.schema, plain.format, plain.filesystem)
            yield from bounded.scanner(columns=columns, filter=where).to_batches()

    def _brought(
        self, files: Sequence[LiveFile], columns: Any, where: ds.Expression | None
    ) -> Iterator[pa.RecordBatch]:
        yield from scanner_of(self._rows(files), self.schema, columns=columns, where=where).to_batches()

    def _rows(self, files: Sequence[LiveFile]) -> Iterator[pa.RecordBatch]:
        with Fetching(self._io, [file.file for file in files]) as fetching:
            present = PresentRows(self._metadata, self._io, fetching, files)
            for path, reason in present.rejected.items():
                raise UnreadableFile(path, reason)  # leaving its rows out would be a wrong answer
            for file in files:
                for piece in present.rows(file):
                    columns = [piece[one.name].cast(one.type) for one in self.schema]
                    yield from pa.Table.from_arrays(columns, schema=self.schema).to_batches()


def _check_rows(file: LiveFile, rows: int) -> None:
    if rows != file.file.record_count:
        raise UnreadableFile(file.path, f"has {rows} rows, its manifest says {file.file.record_count}")


def stated_footers(io: FileIO, files: Sequence[LiveFile]) -> Mapping[str, str]:
    """Opens each file's footer; by path, why one cannot be read, or is not what its manifest says.

    Raises:
        FileNotFoundError: One is gone.
    """

    def look(file: LiveFile) -> str:
        try:
            with open_native(io, file.path, file.file.file_size_in_bytes) as source:
                _check_rows(file, open_parquet(source).metadata.num_rows)
        except FileNotFoundError:
            raise
        except UnreadableFile as error:
            return error.reason
        except (pa.ArrowException, OSError, ValueError) as error:
            if (failure := failed_request(error, file.path)) is not None:
                raise failure from error
            return f"cannot be read: {' '.join(str(error).split())}"
        return ""

    with ThreadPoolExecutor(THREADS, thread_name_prefix="footers") as pool:
        return {file.path: said for file, said in zip(files, pool.map(look, files), strict=True) if said}

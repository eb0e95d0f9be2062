"""Data files of an Iceberg partition into few: the rewriter's kernels, with what is Iceberg's before and after.

Before: a file that has the table's columns as they are now, and no deletes, goes to the rewriter as it is. Of all
others the rows are decoded, those that are deleted left out, the columns brought to the present schema by field id, and
the result is written to a scratch file, whose row groups the rewriter copies; each piece is read back before it counts.

After: the outputs' footers must have the table's columns under their field ids, and as many rows as there should be.
"""

from __future__ import annotations

import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io import FileIO
from pyiceberg.io.pyarrow import _determine_partitions, schema_to_pyarrow
from pyiceberg.manifest import DataFile as IcebergFile
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.typedef import Record

from datalake_assets.core.files import DataFile
from datalake_assets.errors import CorruptLake
from datalake_assets.lake.iceberg.catalog_commits import delete_quietly, table_text
from datalake_assets.lake.iceberg.data_files import data_file_of
from datalake_assets.lake.iceberg.object_reads import Fetching, open_native, read_blocks
from datalake_assets.lake.iceberg.present_rows import PresentRows, SameShape, same_fields
from datalake_assets.lake.iceberg.snapshot_files import LiveFile
from datalake_assets.parquet.concat import ConcatWriter
from datalake_assets.parquet.decoding import open_parquet
from datalake_assets.parquet.fingerprint import same_values
from datalake_assets.parquet.footer import Footer, parse_footer
from datalake_assets.parquet.inputs import Input
from datalake_assets.parquet.outputs import Opener
from datalake_assets.parquet.rewrite import Rewritten, rewrite
from datalake_assets.parquet.rewrite_settings import RewriteSettings
from datalake_assets.parquet.sinks import ByteLike
from datalake_assets.parquet.writer import Encodings, choose_encodings, open_writer

__all__ = ["Rewriting", "RewrittenFiles"]

#: Bytes copied at a time; a request each where the table is far away.
BLOCK_BYTES = 1 << 20
#: Scratch files that are open at once, when rows are spread over other partitions.
OPEN_SCRATCH = 64


@dataclass(frozen=True, slots=True)
class RewrittenFiles:
    """What came of a rewrite; nothing is committed.

    Attributes:
        outputs: New data files.
        inputs: The data files whose rows they hold.
        rejected: Paths of the files that were left out, with the reason.
        rows_deleted: Rows of the inputs that deletes had taken away.
        copied: Row groups that were copied.
        encoded: Row groups that were made anew.
        merged: Of these, those that the native kernel merged page by page.
        detours: Paths of the files that were decoded though the native kernel is there, with the reason.
    """

    outputs: tuple[IcebergFile, ...] = ()
    inputs: tuple[LiveFile, ...] = ()
    rejected: Mapping[str, str] = field(default_factory=dict)
    rows_deleted: int = 0
    copied: int = 0
    encoded: int = 0
    merged: int = 0
    detours: Mapping[str, str] = field(default_factory=dict)


class Rewriting:
    """Rewrites groups of files of one table; as a context it keeps a folder for scratch files.

    Args:
        table: As it was when the groups were planned.
        settings: Of the rewriter.
    """

    def __init__(self, table: Table, settings: RewriteSettings) -> None:
        self._table, self._io, self._settings = table, table.io, settings
        self._metadata = table.metadata
        self._schema, self._spec = table.metadata.schema(), table.metadata.spec()
        self._arrow = schema_to_pyarrow(self._schema, include_field_ids=True)
        self._id, self._numbers = uuid.uuid4(), count()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        folder = self._stack.enter_context(TemporaryDirectory(prefix="iceberg-"))
        self._scratch = Path(folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, files: Sequence[LiveFile]) -> RewrittenFiles:
        """Rewrites files of one partition, in the order given, under the table's current partition spec.

        Raises:
            CorruptLake: What was written is not what was read; it was deleted.
        """
        try:
            with Fetching(self._io, [file.file for file in files]) as fetching:
                return self._as_they_are(files, fetching) or self._in_shape(files, fetching)
        finally:
            for path in self._scratch.iterdir():
                path.unlink()

    def _in_shape(self, files: Sequence[LiveFile], fetching: Fetching) -> RewrittenFiles:
        """Files of which some have to be brought into shape first, or moved."""
        present = PresentRows(self._metadata, self._io, fetching, files)
        if files[0].file.spec_id != self._metadata.default_spec_id:
            return self._moved(files, present)
        done = self._in_place(files, fetching, present)
        if done.rejected.keys() - present.rejected.keys():  # of several writers: then all are made alike
            delete_quietly(self._io, [file.file_path for file in done.outputs])
            done = self._in_place(files, fetching, present, all_alike=True)
        return done

    def _as_they_are(self, files: Sequence[LiveFile], fetching: Fetching) -> RewrittenFiles | None:
        """Files that are as they should be, as nearly all are: each is read once. None if that comes out otherwise."""
        if any(file.deletes or file.file.spec_id != self._metadata.default_spec_id for file in files):
            return None
        shape = SameShape(self._arrow)

        def opened(path: str) -> pa.NativeFile:
            source = fetching.open(path)
            if not shape.has(source):
                raise _AnotherShape
            source.seek(0)
            return source

        partition = files[0].file.partition
        inputs = [Input(_as_input(each.file), partial(opened, each.path)) for each in files]
        try:
            done = self._rewritten(inputs, partition)
        except _AnotherShape:
            return None
        if done.rejected:  # the reason may be one that being brought into shape mends
            delete_quietly(self._io, [path for path, _ in done.outputs])
            return None
        nothing = PresentRows(self._metadata, self._io, fetching, ())
        return self._checked(done, {file.path: (file,) for file in files}, nothing, partition)

    def _in_place(
        self,
        files: Sequence[LiveFile],
        fetching: Fetching,
        present: PresentRows,
        *,
        all_alike: bool = False,
    ) -> RewrittenFiles:
        """Inputs as they are, and scratch files of runs of those that have to be brought into shape."""
        inputs: list[Input] = []
        members: dict[str, tuple[LiveFile, ...]] = {}
        usable = [file for file in files if file.path not in present.rejected]
        for as_it_is, run in groupby(usable, lambda file: not all_alike and present.is_as_it_should_be(file)):
            if as_it_is:
                for file in run:
                    inputs.append(Input(_as_input(file.file), partial(fetching.open, file.path)))
                    members[file.path] = (file,)
            else:
                together = tuple(run)
                scratch = self._written(together, present)
                inputs.append(scratch.as_input())
                members[scratch.name] = together
        partition = files[0].file.partition
        done = self._rewritten(inputs, partition)
        return self._checked(done, members, present, partition)

    def _written(self, files: Sequence[LiveFile], present: PresentRows) -> _Scratch:
        """The rows of files that have to be brought into shape, in one scratch file."""
        scratch = _Scratch(self._new_scratch(), present.common_key_values(), self._settings)
        with closing(scratch):
            for file in files:
                for piece in present.rows(file):
                    scratch.add(piece)
        return scratch

    def _moved(self, files: Sequence[LiveFile], present: PresentRows) -> RewrittenFiles:
        """Files of an old partition spec, spread over the partitions of the current one."""
        spread = _Spread(self._metadata, lambda: _Scratch(self._new_scratch(), {}, self._settings))
        try:
            for file in files:
                if file.path not in present.rejected:
                    for piece in present.rows(file):
                        spread.add(piece)
        finally:
            spread.close()
        total = RewrittenFiles(rejected=dict(present.rejected))
        outputs: list[IcebergFile] = []
        try:
            for partition, written in spread.files():
                done = self._rewritten([each.as_input() for each in written], partition)
                outputs += self._outputs(done, partition)
                self._demand(not done.rejected, f"a scratch file was refused: {done.rejected}")
                total = replace(
                    total,
                    copied=total.copied + done.copied,
                    encoded=total.encoded + done.encoded,
                    merged=total.merged + done.merged,
                )
            taken = tuple(file for file in files if file.path not in present.rejected)
            self._count(outputs, taken, present)
        except BaseException:
            delete_quietly(self._io, [file.file_path for file in outputs])
            raise
        return replace(total, outputs=tuple(outputs), inputs=taken, rows_deleted=present.rows_deleted)

    def _rewritten(self, inputs: Sequence[Input], partition: Record) -> Rewritten[str]:
        inputs = [each for each in inputs if each.file.rows]
        if not inputs:
            return Rewritten(rejected={})
        opener = Opener(
            partial(self._open_output, partition),
            lambda path: delete_quietly(self._io, [path]),
            self._read_back,
            where=table_text(self._table),
            block_bytes=BLOCK_BYTES,
        )
        return rewrite(inputs, self._settings, opener, metadata={})

    def _checked(
        self,
        done: Rewritten[str],
        members: Mapping[str, tuple[LiveFile, ...]],
        present: PresentRows,
        partition: Record,
    ) -> RewrittenFiles:
        """The outputs as data files, once they are what they should be; files without rows count as rewritten."""
        outputs = self._outputs(done, partition)
        try:
            rejected = dict(present.rejected)
            for name, reason in done.rejected.items():
                rejected |= dict.fromkeys((file.path for file in members[name]), reason)
            gone = set(rejected)
            rewritten = set(done.rewritten)
            empty = not rewritten and not done.rejected
            taken = tuple(
                file
                for name, files in members.items()
                for file in files
                if file.path not in gone and (empty or name in rewritten or not self._has_rows(file, present))
            )
            self._count(outputs, taken, present)
        except BaseException:
            delete_quietly(self._io, [file.file_path for file in outputs])
            raise
        deleted = sum(present.deleted_of.get(file.path, 0) for file in taken)
        detours = {file.path: why for name, why in done.detours.items() for file in members[name]}
        return RewrittenFiles(tuple(outputs), taken, rejected, deleted, done.copied, done.encoded, done.merged, detours)

    def _has_rows(self, file: LiveFile, present: PresentRows) -> bool:
        return file.file.record_count > present.deleted_of.get(file.path, 0)

    def _count(self, outputs: Collection[IcebergFile], inputs: Sequence[LiveFile], present: PresentRows) -> None:
        there = sum(file.file.record_count - present.deleted_of.get(file.path, 0) for file in inputs)
        written = sum(file.record_count for file in outputs)
        self._demand(there == written, f"{there} rows were read and {written} written")

    def _outputs(self, done: Rewritten[str], partition: Record) -> list[IcebergFile]:
        """Data files of the outputs, from their footers as they are stored."""
        made: list[IcebergFile] = []
        try:
            for path, known in done.outputs:
                source = open_native(self._io, path, known.size_bytes)
                try:
                    parquet = open_parquet(source, is_proven=self._settings.verify == "full")  # it was read back
                    self._demand(same_fields(parquet.schema_arrow, self._arrow), f"{path} has other columns")
                    self._demand(parquet.metadata.num_rows == known.rows, f"{path} has another number of rows")
                    size_bytes = source.size()
                    self._demand(size_bytes == known.size_bytes, f"{path} has another size than was written")
                    made.append(
                        data_file_of(
                            path,
                            parquet.metadata,
                            size_bytes,
                            schema=self._schema,
                            properties=self._metadata.properties,
                            spec_id=self._metadata.default_spec_id,
                            partition=partition,
                        )
                    )
                finally:
                    source.close()
        except BaseException:
            delete_quietly(self._io, [path for path, _ in done.outputs])
            raise
        return made

    def _demand(self, holds: bool, otherwise: str) -> None:  # noqa: FBT001  what must hold comes first
        if not holds:
            raise CorruptLake(table_text(self._table), f"{otherwise}; nothing was committed")

    def _open_output(self, partition: Record) -> _Output:
        name = f"compacted-{self._id}-{next(self._numbers):05d}.parquet"
        if self._spec.fields:
            name = f"{self._spec.partition_to_path(partition, self._schema)}/{name}"
        return _Output(self._io, self._table.location_provider().new_data_location(name))

    def _read_back(self, path: str) -> Iterator[bytes]:
        yield from read_blocks(self._io, path, BLOCK_BYTES)

    def _new_scratch(self) -> Path:
        return self._scratch / f"{next(self._numbers):05d}.parquet"


class _AnotherShape(Exception):
    """A file is not as it should be."""


def _as_input(file: IcebergFile) -> DataFile:
    return DataFile(name=file.file_path, rows=file.record_count, size_bytes=file.file_size_in_bytes)


class _Output:
    """A new data file of the table; what is written of one that is given up is deleted."""

    def __init__(self, io: FileIO, path: str) -> None:
        self._io, self._path, self._size_bytes = io, path, 0
        self._stream: Any = io.new_output(path).create()
        self._finished = False
        self.closed = False

    @property
    def name(self) -> str:
        """Where it is."""
        return self._path

    def write(self, data: ByteLike, /) -> int:
        """Appends."""
        self._stream.write(data)
        self._size_bytes += len(data)
        return len(data)

    def tell(self) -> int:
        """Bytes written so far."""
        return self._size_bytes

    def flush(self) -> None:
        """Nothing: `finish` does it."""

    def close(self) -> None:
        """Ends the writing."""
        if not self.closed:
            self.closed = True
            self._stream.close()

    def finish(self) -> str:
        """Closes it; nobody knows of it before the commit."""
        self.close()
        self._finished = True
        return self._path

    def discard(self) -> None:
        """Deletes it."""
        if not self._finished:
            try:
                self.close()
            finally:
                delete_quietly(self._io, [self._path])


class _Scratch:
    """Rows on their way into an output: a Parquet file of large row groups, where no reader of the table looks."""

    def __init__(self, path: Path, key_values: Mapping[bytes, bytes], settings: RewriteSettings) -> None:
        self._path, self._key_values, self._settings = path, key_values, settings
        self._file = path.open("wb")
        self._writer: ConcatWriter | None = None
        self._encodings: Encodings | None = None
        self._known = DataFile(name=str(path), rows=0, size_bytes=0)
        self._buffer: list[pa.Table] = []
        self._buffered_bytes = 0

    @property
    def name(self) -> str:
        """Its name among the inputs of a rewrite."""
        return self._known.name

    def add(self, piece: pa.Table) -> None:
        """Appends rows, as row groups of the size that is wanted."""
        if self._buffered_bytes + piece.nbytes > self._settings.parquet.row_group_bytes:
            self._flush()
        self._buffer.append(piece)
        self._buffered_bytes += piece.nbytes

    def close(self) -> None:
        """Ends it; idempotent."""
        if self._file.closed:
            return
        with self._file:
            self._flush()
            if self._writer is not None:
                self._known = self._writer.close(self._key_values, name=self.name).file

    def as_input(self) -> Input:
        """The same for the rewriter."""
        return Input(self._known, partial(pa.OSFile, self.name), is_encoded=True)

    def _flush(self) -> None:
        rows = pa.concat_tables(self._buffer).combine_chunks() if self._buffer else None
        self._buffer, self._buffered_bytes = [], 0
        if rows is None or not rows.num_rows:
            return
        self._encodings = self._encodings or choose_encodings(rows, self._settings.parquet.profile)
        encoded = pa.BufferOutputStream()
        with open_writer(encoded, rows.schema, self._settings.parquet, self._encodings) as writer:
            writer.write_table(rows, row_group_size=rows.num_rows)
        buffer = encoded.getvalue()
        if not same_values([rows], [pq.read_table(pa.BufferReader(buffer))]):
            raise CorruptLake(self.name, "rows do not read back as they were written; nothing was committed")
        footer, read_at = _footer_of(buffer)
        if self._writer is None:
            self._writer = ConcatWriter(self._file, footer)
        self._writer.append(footer, read_at, is_sound=True)


def _footer_of(buffer: pa.Buffer) -> tuple[Footer, Callable[[int, int], memoryview]]:
    view = memoryview(buffer)

    def read_at(offset: int, length: int) -> memoryview:
        return view[offset : offset + length]

    return parse_footer(read_at, len(view), where="scratch"), read_at


class _Spread:
    """Rows by the partition of the current spec that they belong to, in scratch files.

    Args:
        metadata: Of the table.
        begin: Begins a scratch file.
    """

    def __init__(self, metadata: TableMetadata, begin: Callable[[], _Scratch]) -> None:
        self._spec, self._schema, self._begin = metadata.spec(), metadata.schema(), begin
        self._open: OrderedDict[str, _Scratch] = OrderedDict()
        self._written: dict[str, list[_Scratch]] = defaultdict(list)
        self._partitions: dict[str, Record] = {}

    def add(self, piece: pa.Table) -> None:
        """Appends each row to its partition."""
        if not self._spec.fields:
            self._scratch_of(Record()).add(piece)
            return
        for each in _determine_partitions(spec=self._spec, schema=self._schema, arrow_table=piece):
            self._scratch_of(each.partition_key.partition).add(each.arrow_table_partition)

    def _scratch_of(self, partition: Record) -> _Scratch:
        key = repr(partition)
        self._partitions[key] = partition
        if key in self._open:
            self._open.move_to_end(key)
            return self._open[key]
        if len(self._open) >= OPEN_SCRATCH:
            self._open.popitem(last=False)[1].close()
        self._open[key] = scratch = self._begin()
        self._written[key].append(scratch)
        return scratch

    def close(self) -> None:
        """Ends all of them."""
        while self._open:
            self._open.popitem()[1].close()

    def files(self) -> Iterator[tuple[Record, list[_Scratch]]]:
        """The scratch files of each partition."""
        for key, written in self._written.items():
            yield self._partitions[key], written

"""How a query reads the files of a table in a store: few ways there and back, and few bytes.

Each way takes as long as reading some hundred kilobytes. What will be read is known from the ends of files, which are
at hand by then: so columns that are read whole are asked for at once, of all row groups, before Arrow comes to them.
Where a filter leaves rows of few pages, these are read alone (`page_selection`): first those of the columns that it
names, if all would be many, and of the others what has rows that it takes. Whatever is not as it should be for that,
Arrow reads in its own way.

That is for tables of few files, which compaction leaves. Of many, ends are most of what is read, and Arrow asks for
them while it reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq

from datalake_assets.errors import UnreadableFile
from datalake_assets.lake.sql_files import ENDS, AskedFile, AskedFiles
from datalake_assets.parquet.footer import parse_footer
from datalake_assets.parquet.page_selection import ChunkIndex, Leaves, Rows, chunk_index, common, covering, decoded, met
from datalake_assets.parquet.row_groups import Place
from datalake_assets.parquet.stated import schema_of
from datalake_assets.parquet.thrift import MalformedThrift

__all__ = ["StoredRows", "local_rows", "stored_rows"]

#: Rows at a time that are counted and not read.
_COUNTED_ROWS = 1 << 20
#: Bytes of a row group's columns that are asked for before Arrow comes to them: a query may end early all the same.
_LITTLE = 1 << 20
#: Bytes of row groups from which on their pages are chosen; and of pages that are read at once, without looking first
#: which rows a filter takes: more than that takes longer than another way.
_WORTH, _AT_ONCE = 2 << 20, 2 << 20
#: Pages are chosen if they are no more than this share of their row groups; so are those that are looked at before.
_CHOSEN_SHARE, _LOOK_SHARE = 2, 8
#: Of pages that are held at the same time; of those that are looked at before, and of indexes.
_MOST_BYTES, _MOST_LOOK_BYTES = 64 << 20, 16 << 20
#: Ranges of rows that are looked for in pages.
_RANGES = 1000
#: Stretches closer than this are read at once; and those that Arrow reads at once (CacheOptions in its
#: io/caching.h, hole_size_limit).
_GAP_BYTES, _HOLE_BYTES = 32 << 10, 8 << 10
#: What leaves the reading to Arrow.
_LEFT_TO_ARROW = (MalformedThrift, UnreadableFile, pa.ArrowException, LookupError, ValueError)


def local_rows(files: Sequence[str], schema: pa.Schema, rows: int | None) -> ds.Dataset:
    """Local files, as Arrow reads them; see `stored_rows`."""
    form, local = ds.ParquetFileFormat(), pa.fs.LocalFileSystem()
    return StoredRows.of([form.make_fragment(file, filesystem=local) for file in files], schema, form, rows)


def stored_rows(asked: AskedFiles, sizes: Sequence[int], schema: pa.Schema, rows: int | None) -> ds.Dataset:
    """Files in a store.

    Args:
        asked: Reads them.
        sizes: Bytes of each.
        schema: The columns; the first is in no file, and where it alone is wanted, none is read.
        rows: Of all files together, if that is known.
    """
    form = ds.ParquetFileFormat(default_fragment_scan_options=ds.ParquetFragmentScanOptions(pre_buffer=True))
    files = [AskedFile(asked, number, size) for number, size in enumerate(sizes)]
    fragments = [form.make_fragment(pa.PythonFile(file, mode="r")) for file in files]
    return StoredRows.of(fragments, schema, form, rows, asked=asked, files=files)


class StoredRows(ds.FileSystemDataset):  # type: ignore[misc]  # Arrow has no types
    """Rows of files, as DuckDB asks for them: by their scanner."""

    _rows: int | None
    _asked: AskedFiles | None
    _files: Sequence[AskedFile]

    @classmethod
    def of(
        cls,
        fragments: Sequence[Any],
        schema: pa.Schema,
        form: ds.ParquetFileFormat,
        rows: int | None,
        *,
        asked: AskedFiles | None = None,
        files: Sequence[AskedFile] = (),
    ) -> StoredRows:
        """The rows of fragments; those of a store are those of ``files``."""
        made = cls(fragments, schema, form)
        made._rows, made._asked, made._files = rows, asked, files
        return made

    def scanner(self, **how: Any) -> ds.Scanner:
        """What reads some columns of the rows that a filter takes."""
        columns, where = how.get("columns"), how.get("filter")
        first = pa.schema([self.schema.field(0)])
        if self._rows is not None and where is None and columns == first.names:
            return ds.Scanner.from_batches(_counted(self._rows, first), schema=first)
        if self._asked is not None:
            self._asked.reads_all |= where is None
            if columns and 0 < len(self._files) <= ENDS:
                try:
                    found = self._scanned(columns, where)
                except _LEFT_TO_ARROW:
                    found = None
                if found is not None:
                    return found
        return super().scanner(**how)

    def _scanned(self, columns: Sequence[str], where: ds.Expression | None) -> ds.Scanner | None:
        """The scanner of chosen pages; None where Arrow is to read, what it will has been asked for then."""
        for file in self._files:
            file.ask_end()
        wanted = [name for name in columns if name != self.schema.field(0).name]
        if where is None:
            for file in self._files:
                _ask_ahead(file, wanted)
            return None
        filtered = _named_by(where, self.schema)  # DuckDB does not ask for a column that is filtered by alone
        besides = [name for name in filtered if name not in columns]
        wanted += besides
        read = pa.schema([self.schema.field(name) for name in (*columns, *besides)])
        groups = self._groups(where, wanted)
        chosen = _Choice(groups, wanted, filtered, self.schema, where).chosen() if groups else None
        if chosen is None:
            return None
        batches = chain.from_iterable(each.batches(read) for each in chosen)
        return ds.Scanner.from_batches(batches, schema=read, columns=columns, filter=where)

    def _groups(self, where: ds.Expression, wanted: Sequence[str]) -> list[_Group]:
        """The row groups that a filter leaves by what they state of their values."""
        found = []
        for fragment, file in zip(self.get_fragments(), self._files, strict=True):
            left = [each.id for each in fragment.subset(filter=where, schema=self.schema).row_groups]
            if left:
                end, size = file.end(), file.size_bytes
                begin = size - len(end)
                read = _Read(file)
                read.known[begin] = end
                footer = parse_footer(read.now, size, where="")
                leaves = Leaves(footer, _metadata(file))
                places = {name: leaves.place(name, self.schema.field(name).type) for name in wanted}
                if None in places.values():
                    raise MalformedThrift("a column is not a flat one of its type")
                found += [_Group(read, leaves, group, places) for group in left]  # type: ignore[arg-type]  # as above
        return found


def _counted(rows: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """So many rows of one column without values."""
    for start in range(0, rows, _COUNTED_ROWS):
        yield pa.record_batch([pa.nulls(min(_COUNTED_ROWS, rows - start))], schema=schema)


def _ask_ahead(file: AskedFile, wanted: Sequence[str]) -> None:
    """Asks for columns of all row groups, if they are little of each."""
    metadata = _metadata(file)
    described = schema_of(metadata)
    places = [place for place in range(metadata.num_columns) if described.column(place).path in wanted]
    if len(places) != len(wanted):  # some have parts, which Arrow reads together with what lies beside them
        return
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(place) for place in places]
        if sum(each.total_compressed_size for each in chunks) <= _LITTLE:
            file.ask_ahead(_joined(map(_stretch, chunks), _HOLE_BYTES))


def _metadata(file: AskedFile) -> pq.FileMetaData:
    """What a file's end says.

    Raises:
        MalformedThrift: It is not all of its footer, or none.
    """
    try:
        return pq.read_metadata(pa.BufferReader(file.end()))
    except (pa.ArrowException, OSError) as error:
        if not file.has_end:
            raise
        raise MalformedThrift("a footer that is longer than that") from error


def _stretch(chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    start = min(chunk.dictionary_page_offset or chunk.data_page_offset, chunk.data_page_offset)
    return start, start + chunk.total_compressed_size


def _joined(stretches: Iterable[tuple[int, int]], gap_bytes: int) -> list[tuple[int, int]]:
    """Stretches in their order, those together that are close to one another."""
    found: list[tuple[int, int]] = []
    for start, end in sorted(stretches):
        if found and start - found[-1][1] <= gap_bytes:
            found[-1] = found[-1][0], max(found[-1][1], end)
        else:
            found.append((start, end))
    return found


def _named_by(where: ds.Expression, schema: pa.Schema) -> list[str]:
    """The columns that a filter names: those without which it cannot be bound."""

    def is_named(name: str) -> bool:
        others = pa.schema([each for each in schema if each.name != name])
        try:
            ds.Scanner.from_batches([], schema=others, filter=where)
        except pa.ArrowInvalid:
            return True
        return False

    return [name for name in schema.names if is_named(name)]


class _Read:
    """Stretches of a file that were asked for, by where they begin."""

    def __init__(self, file: AskedFile) -> None:
        self.file, self.known = file, dict[int, bytes]()
        self._wanted: set[tuple[int, int]] = set()
        self._asked: list[tuple[int, list[Future[bytes | bytearray]]]] = []

    def want(self, start: int, end: int) -> None:
        """Notes a stretch that will be read; `ask` asks for all of them, those close together at once."""
        if start < end and self._found(start, end) is None:
            self._wanted.add((start, end))

    def ask(self) -> None:
        """Asks for what is wanted."""
        self._asked += [(start, self.file.ask(start, end)) for start, end in _joined(self._wanted, _GAP_BYTES)]
        self._wanted.clear()

    def get(self, start: int, end: int) -> bytes:
        """A stretch that was wanted."""
        for begin, answers in self._asked:
            self.known[begin] = b"".join(answer.result() for answer in answers)
        self._asked.clear()
        found = self._found(start, end)
        if found is None:
            raise MalformedThrift("a stretch that nobody asked for")
        return found

    def now(self, start: int, length: int) -> bytes:
        """A stretch, at once."""
        found = self._found(start, start + length)
        return found if found is not None else b"".join(each.result() for each in self.file.ask(start, start + length))

    def _found(self, start: int, end: int) -> bytes | None:
        for begin, data in self.known.items():
            if begin <= start and end <= begin + len(data):
                return data[start - begin : end - begin]
        return None


@dataclass(slots=True)
class _Group:
    """A row group, and what of it is chosen.

    Attributes:
        read: Its file.
        leaves: The file's columns.
        number: Which it is there.
        places: Of the columns that are wanted.
        indexes: Their pages.
        rows: Which may be taken.
    """

    read: _Read
    leaves: Leaves
    number: int
    places: Mapping[str, int]
    indexes: dict[str, ChunkIndex] = field(default_factory=dict)
    rows: list[Rows] = field(default_factory=list)

    def size_bytes(self, columns: Iterable[str]) -> int:
        """Of whole column chunks."""
        chunks = [self.leaves.chunk(self.number, self.places[name]) for name in columns]
        return sum(each.end - each.start for each in chunks)

    def stretches(self, columns: Iterable[str]) -> Iterator[tuple[int, int]]:
        """What has to be read of columns for the rows that are chosen."""
        for name in columns if self.rows else ():
            yield self.indexes[name].dictionary
            yield from ((page.start, page.start + page.size_bytes) for page in covering(self.indexes[name], self.rows))

    def column(self, name: str) -> pa.ChunkedArray:
        """The values of a column in the rows that are chosen; its pages have been asked for."""
        return decoded(self.leaves, self.number, self.indexes[name], self.rows, self.read.get)

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows that are chosen, or all of them where their pages are not what the indexes say."""
        if not self.rows:
            return
        try:
            table = pa.table({name: self.column(name) for name in schema.names if name in self.places})
        except _LEFT_TO_ARROW:
            whole = pq.ParquetFile(pa.PythonFile(self.read.file.again, mode="r"))
            table = whole.read_row_group(self.number, columns=list(self.places))
        columns = [
            table[each.name].cast(each.type) if each.name in self.places else pa.nulls(table.num_rows, each.type)
            for each in schema
        ]
        yield from pa.table(columns, schema=schema).to_batches()


@dataclass(frozen=True, slots=True)
class _Choice:
    """The choice of pages.

    Attributes:
        groups: Row groups that are left.
        wanted: Columns that are read, those of the filter among them.
        filtered: Columns that the filter names.
        schema: Of all columns.
        where: The filter.
    """

    groups: Sequence[_Group]
    wanted: Sequence[str]
    filtered: Sequence[str]
    schema: pa.Schema
    where: ds.Expression

    def chosen(self) -> Sequence[_Group] | None:
        """The row groups, their pages asked for; None where choosing gains too little.

        Raises:
            MalformedThrift: There are no page indexes, or they are not what they should be.
        """
        whole = sum(each.size_bytes(self.wanted) for each in self.groups)
        if whole < _WORTH or not self.filtered:
            return None
        if not self._has_read_indexes():
            return None
        for group in self.groups:
            group.rows = [(0, group.leaves.rows(group.number))]
            for name in self.filtered:
                group.rows = common(group.rows, met(group.indexes[name], name, self.schema, self.where))
        looked = self._size(self.filtered)
        if self._size(self.wanted) > _AT_ONCE and looked * _LOOK_SHARE <= whole and looked <= _MOST_LOOK_BYTES:
            self._look()
        chosen = self._size(self.wanted)
        if chosen * _CHOSEN_SHARE > whole or chosen > _MOST_BYTES:
            return None
        self._ask(self.wanted)
        return self.groups

    def _has_read_indexes(self) -> bool:
        """Reads the page indexes, if there are not too many of them."""
        places = defaultdict[int, dict[str, list[Place]]](dict)
        for number, group in enumerate(self.groups):
            for name in self.wanted:
                offsets, bounds = group.leaves.indexes(group.number, group.places[name])
                if offsets is None:
                    raise MalformedThrift("there is no page index")
                places[number][name] = [offsets, *([bounds] if bounds and name in self.filtered else [])]
                for place in places[number][name]:
                    group.read.want(place.offset, place.offset + place.length)
        if sum(each.length for some in places.values() for of in some.values() for each in of) > _MOST_LOOK_BYTES:
            return False
        self._send()
        for number, group in enumerate(self.groups):
            for name in self.wanted:
                read = {each: group.read.get(each.offset, each.offset + each.length) for each in places[number][name]}
                kind = self.schema.field(name).type
                group.indexes[name] = chunk_index(group.leaves, group.number, group.places[name], kind, read)
        return True

    def _look(self) -> None:
        """Reads the columns of the filter, to find the very rows that it takes."""
        self._ask(self.filtered)
        row = next(name for n in range(len(self.schema) + 1) if (name := f"row {n}") not in self.schema.names)
        for group in (each for each in self.groups if each.rows):
            columns = {name: group.column(name).cast(self.schema.field(name).type) for name in self.filtered}
            numbers = pa.chunked_array([np.arange(*rows, dtype=np.int64) for rows in group.rows])
            table = pa.table({**columns, row: numbers})
            scanner = ds.Scanner.from_batches(table.to_batches(), schema=table.schema, columns=[row], filter=self.where)
            taken = scanner.to_table()[row]
            if len(taken) <= _RANGES:
                group.rows = [(each, each + 1) for each in sorted(taken.to_pylist())]

    def _size(self, columns: Sequence[str]) -> int:
        return sum(end - start for each in self.groups for start, end in each.stretches(columns))

    def _ask(self, columns: Sequence[str]) -> None:
        for each in self.groups:
            for stretch in each.stretches(columns):
                each.read.want(*stretch)
        self._send()

    def _send(self) -> None:
        for read in {id(each.read): each.read for each in self.groups}.values():
            read.ask()

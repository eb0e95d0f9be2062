"""Row groups of many files in one, their bytes as they are: nothing is decoded, only the footer is written anew.

It costs what copying costs, a fifteenth of decoding and encoding, and keeps everything that a writer has put into a
file: pages, codecs, dictionaries, statistics, bloom filters, page indexes. It makes no row group larger, so it is for
files whose row groups are large enough.

Offsets stand in four places: in a column chunk's metadata (pages, bloom filter, page indexes), in its row group, and in
offset indexes. All are moved. Page indexes are kept back and written before the footer, as the format asks; bloom
filters stay beside the row groups that they were appended with. A column index and a bloom filter hold no offsets, and
mean the same wherever they lie.

Source: apache/parquet-format, src/main/thrift/parquet.thrift: OffsetIndex, PageLocation, BloomFilterHeader.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as declared
from typing import NamedTuple

from datalake_assets.core.files import DataFile
from datalake_assets.errors import UnreadableFile
from datalake_assets.parquet.footer import Footer, ReadAt, read_exactly
from datalake_assets.parquet.pages import PageWalk, UnsoundPages
from datalake_assets.parquet.row_groups import INDEX_FIELDS, MAGIC, Place, Role, moved_offset_index
from datalake_assets.parquet.sinks import FileCopier, RangeCopier, ServerSide, Sink, new_checksum
from datalake_assets.parquet.stated_bounds import odd_bounds
from datalake_assets.parquet.thrift import (
    BINARY,
    I32,
    I64,
    LIST,
    STRUCT,
    CompactReader,
    CompactWriter,
    MalformedThrift,
    zigzag,
)

__all__ = [
    "MAX_ROW_GROUPS",
    "ConcatWriter",
    "Concatenated",
    "Copied",
    "bloom_places",
    "read_places",
]

#: More than any bloom filter's header takes: a number, and three unions of empty structs.
BLOOM_HEADER_BYTES = 64
#: Page indexes are held in memory; those of a file of a gigabyte with small pages take a few MiB.
MAX_INDEX_BYTES = 64 << 20
#: Places closer than this are read at once.
GAP_BYTES = 64 << 10
#: Bytes that are read at once, at the most.
READ_BYTES = 4 << 20


def bloom_places(footer: Footer, read_at: ReadAt, blooms: Iterable[Place]) -> list[Place]:
    """The bloom filters with their lengths, which files of before parquet-format 2.10 say only in their headers."""
    places = []
    for offset, length in blooms:
        limit = footer.end_of_data - offset
        if not length:
            header = read_exactly(read_at, offset, min(BLOOM_HEADER_BYTES, limit), where=footer.where)
            length = _bloom_size(bytes(header), limit)  # noqa: PLW2901
        places.append(Place(offset, length))
    return places


def _bloom_size(header: bytes, limit: int) -> int:
    reader, size = CompactReader(header), 0
    for field, kind in reader.fields():
        if field == 1:  # numBytes
            size = reader.integer(kind, I32)
    if size <= 0 or reader.position + size > limit:
        raise MalformedThrift("a bloom filter lies outside the file")
    return reader.position + size


def read_places(footer: Footer, read_at: ReadAt, places: Iterable[Place]) -> dict[Place, bytes]:
    """The bytes of these page indexes, in few reads: writers put them side by side."""
    ordered = sorted(places)
    if sum(length for _, length in ordered) > MAX_INDEX_BYTES:
        raise MalformedThrift("its page indexes are too large")
    found: dict[Place, bytes] = {}
    for together in _neighbours(ordered):
        start, end = together[0].offset, max(offset + length for offset, length in together)
        data = bytes(read_exactly(read_at, start, end - start, where=footer.where))
        found |= {place: data[place.offset - start : place.offset - start + place.length] for place in together}
    return found


def _neighbours(ordered: Iterable[Place]) -> Iterator[list[Place]]:
    together: list[Place] = []
    for place in ordered:
        offset, length = place
        if together:
            before = together[-1].offset + together[-1].length
            if offset - before > GAP_BYTES or offset + length - together[0].offset > READ_BYTES:
                yield together
                together = []
        together.append(place)
    if together:
        yield together


#: Is given bytes of a file, and where in it they begin.
Seen = Callable[[int, bytes | memoryview], None]

#: Read, hashed and written at a time: more than fits into a processor's cache takes half as long again.
BLOCK_BYTES = 1 << 20
#: A file's row groups are numbered by an i16 (parquet.thrift, RowGroup.ordinal).
MAX_ROW_GROUPS = 32767


@dataclass(frozen=True, slots=True)
class Concatenated:
    """What is known of a finished file.

    Attributes:
        file: The file, without times; without a checksum when not all of its bytes were seen.
        row_groups: Its row groups.
        tail: Its last bytes: the footer, its length and the magic.
        seen: Checksum of its bytes without those that were not seen, one after the other.
    """

    file: DataFile
    row_groups: int
    tail: bytes = declared(repr=False)
    seen: str = ""


class _Source(NamedTuple):
    """The ways to the bytes of a file; see `ConcatWriter.append`."""

    read_at: ReadAt
    server_side: ServerSide | None
    descriptor: int | None


class Copied(NamedTuple):
    """A range of a file that was copied: where it begins and ends there, and where it begins in the output."""

    start: int
    end: int
    to: int


class _Moves:
    """Which ranges were copied, and by how much they moved; in the order of the source, disjoint."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._moves: list[tuple[int, int]] = []
        self.ranges: list[Copied] = []

    def add(self, start: int, end: int, *, to: int) -> None:
        self._starts.append(start)
        self._moves.append((end, to - start))
        self.ranges.append(Copied(start, end, to))

    def find(self, offset: int) -> int | None:
        """Where this byte lies now; None if it was not copied."""
        found = bisect_right(self._starts, offset) - 1
        if found < 0 or offset >= self._moves[found][0]:
            return None
        return offset + self._moves[found][1]

    def of(self, offset: int) -> int:
        """Where this byte lies now."""
        moved = self.find(offset)
        if moved is None:
            raise MalformedThrift("an offset points out of its row group")
        return moved


class _Indexed(NamedTuple):
    """A column chunk's page indexes, by the field of the chunk that says where each lies; and the piece for it."""

    pieces: dict[int, int]
    offset_index: bytes
    column_index: bytes

    def after(self, pieces: int) -> _Indexed:
        """The same, its pieces counted from so many earlier."""
        return self._replace(pieces={field: pieces + number for field, number in self.pieces.items()})


class ConcatWriter:
    """One file being put together; not safe to use from two threads at once. A sink that fails ends it.

    Args:
        sink: Takes the bytes; finishing it is the caller's. When its `write` returns, it has no more use for the block.
        like: Gives the schema, and the key-value metadata that `close` adds to.
        block_bytes: Read and written at a time; larger where each read is a request.
    """

    def __init__(self, sink: Sink, like: Footer, *, block_bytes: int = BLOCK_BYTES) -> None:
        self._sink, self._like, self._block_bytes = sink, like, block_bytes
        self._file_copier = sink if isinstance(sink, FileCopier) else None
        self._checksum = new_checksum()
        self._saw_all = self._is_open = True
        self._size_bytes = self._rows = self._row_groups = 0
        self._version = like.version
        self._pieces: list[bytes] = []  # of the encoded row groups; those that say where page indexes lie are empty yet
        self._indexes: list[_Indexed] = []
        self._write(MAGIC)

    @property
    def size_bytes(self) -> int:
        """Bytes so far, without the page indexes and the footer to come."""
        return self._size_bytes

    @property
    def row_groups(self) -> int:
        """How many so far."""
        return self._row_groups

    def append(
        self,
        footer: Footer,
        read_at: ReadAt,
        row_groups: Sequence[int] | None = None,
        *,
        server_side: ServerSide | None = None,
        is_sound: bool = False,
        seen: Sequence[Seen] = (),
        unseen: bool = False,
        descriptor: int | None = None,
    ) -> list[Copied]:
        """Copies row groups with their bloom filters and page indexes; those without rows are left out.

        All pages are walked on the way (`PageWalk`), but for those that the store copies without sending them here.

        Args:
            footer: Of the file to copy from.
            read_at: Reads it; what it raises is passed on.
            row_groups: Which, in the order that they shall have; None: all.
            server_side: Where the store finds the file itself; without effect if the sink cannot ask it.
            is_sound: Its pages need no walk: they were encoded, or walked, a moment ago.
            seen: Are given all bytes that are copied and pass by here, with their offset in the file.
            unseen: Their bytes do not go into the output's checksum, which is not known then: the caller reads them
                back, and compares them with the file.
            descriptor: The file, open, for a sink that takes its bytes by itself (`FileCopier`); ``read_at`` is not
                asked for them then.

        Returns:
            What was copied, in the order of the file; all else that this output has of it was made anew.

        Raises:
            ValueError: The file's schema key is another one, a row group does not exist or is named twice, there
                would be more than 32,767, or the writer is closed.
            UnsoundPages: Its pages are not what its metadata says; then none of its row groups is in this one.
            UnreadableFile: The file is damaged, or shorter than its footer says; then none of its row groups is in
                this one.
        """
        chosen = self._chosen(footer, row_groups)
        layouts = [footer.layouts[number] for number in chosen]
        try:
            blooms = bloom_places(footer, read_at, [bloom for layout in layouts for bloom in layout.blooms])
            places = [place for layout in layouts for pair in layout.indexes for place in pair if place]
            indexes = read_places(footer, read_at, places)
            walk = None if is_sound else _walk_of(footer, chosen)
            witnesses = [*([walk.feed] if walk else []), *seen]
            ranges = _ranges(footer, chosen, blooms)
            source = _Source(read_at, server_side, descriptor)
            moves = self._copy(footer, source, ranges, witnesses, unseen=unseen)
            if walk is not None and self._passes_by(server_side):
                walk.finish()
            rendered = [
                self._render(footer, number, ordinal=self._row_groups + added, moves=moves, indexes=indexes, walk=walk)
                for added, number in enumerate(chosen)
            ]
        except MalformedThrift as error:
            raise UnsoundPages(footer.where, str(error)) from error
        for number, (pieces, indexed) in zip(chosen, rendered, strict=True):
            self._rows += footer.row_groups[number].rows
            self._row_groups += 1
            self._indexes += [index.after(len(self._pieces)) for index in indexed]
            self._pieces += pieces
        self._version = max(self._version, footer.version)
        return moves.ranges

    def close(self, metadata: Mapping[bytes, bytes] | None = None, *, name: str = "") -> Concatenated:
        """Writes the page indexes and the footer, with this key-value metadata besides or instead of that of `like`.

        Returns:
            What is known of it, under the name that it is to have.
        """
        self._check_open()
        self._is_open = False
        self._write_indexes()
        footer = self._footer({**self._like.key_value_metadata, **(metadata or {})})
        tail = footer + len(footer).to_bytes(4, "little") + MAGIC
        self._write(tail)
        seen = str(self._checksum)
        checksum = seen if self._saw_all else ""
        file = DataFile(name=name, rows=self._rows, size_bytes=self._size_bytes, checksum=checksum)
        return Concatenated(file, self._row_groups, tail, seen)

    def abandon(self) -> None:
        """Gives the file up: nothing more is written to the sink. Idempotent."""
        self._is_open = False

    def _check_open(self) -> None:
        if not self._is_open:
            raise ValueError("the file is closed")

    def _chosen(self, footer: Footer, row_groups: Sequence[int] | None) -> list[int]:
        self._check_open()
        if footer.schema_key != self._like.schema_key:
            raise ValueError(f"{footer.where} has another schema, or another writer, than {self._like.where}")
        count = len(footer.row_groups)
        numbers = range(count) if row_groups is None else row_groups
        if len(set(numbers)) < len(numbers) or not all(0 <= number < count for number in numbers):
            raise ValueError(f"{footer.where} has {count} row groups; asked for {list(numbers)}")
        chosen = [number for number in numbers if footer.row_groups[number].rows]
        if self._row_groups + len(chosen) > MAX_ROW_GROUPS:
            raise ValueError(f"a file holds at most {MAX_ROW_GROUPS} row groups")
        return chosen

    def _write(self, data: bytes | memoryview, *, is_seen: bool = True) -> None:
        if is_seen:
            self._checksum.update(data)
        with self._or_abandoned():
            self._sink.write(data)
        self._size_bytes += len(data)

    @contextmanager
    def _or_abandoned(self) -> Iterator[None]:
        """Nobody knows how much a sink has taken that failed, and so where the next byte would lie."""
        try:
            yield
        except BaseException:
            self.abandon()
            raise

    def _copy(
        self,
        footer: Footer,
        source: _Source,
        ranges: Iterable[tuple[int, int]],
        witnesses: Sequence[Seen],
        *,
        unseen: bool,
    ) -> _Moves:
        read_at, server_side, descriptor = source
        copier = self._file_copier if unseen or descriptor is not None else None
        self._saw_all, moves = self._saw_all and not unseen, _Moves()
        for start, end in ranges:
            moves.add(start, end, to=self._size_bytes)
            if server_side is not None and isinstance(self._sink, RangeCopier):
                self._ask_to_copy(self._sink, start, end, server_side, witnesses)
                continue
            passes = self._passing(start, witnesses, is_hashed=not unseen)
            if copier is not None:
                copier.expect(end - start)
            if copier is not None and descriptor is not None:
                with self._or_abandoned():
                    copied = copier.copy_from(descriptor, start, end, seen=passes if witnesses or not unseen else None)
                    if copied != end - start:
                        raise UnreadableFile(footer.where, f"it ends before byte {start + copied + 1}")
                self._size_bytes += end - start
                continue
            for offset in range(start, end, self._block_bytes):
                data = read_exactly(read_at, offset, min(self._block_bytes, end - offset), where=footer.where)
                passes(data)
                self._write(data, is_seen=False)
        return moves

    def _passing(
        self, offset: int, witnesses: Sequence[Seen], *, is_hashed: bool
    ) -> Callable[[bytes | memoryview], None]:
        """What is to be given the bytes of a range that begins there, in their order."""

        def passes(data: bytes | memoryview) -> None:
            nonlocal offset
            if is_hashed:
                self._checksum.update(data)
            for each in witnesses:
                each(offset, data)
            offset += len(data)

        return passes

    def _passes_by(self, server_side: ServerSide | None) -> bool:
        """Whether bytes come here on their way: the store may copy them by itself."""
        return server_side is None or server_side.verify or not isinstance(self._sink, RangeCopier)

    def _ask_to_copy(
        self, sink: RangeCopier, start: int, end: int, source: ServerSide, witnesses: Sequence[Seen]
    ) -> None:
        self._saw_all = self._saw_all and source.verify
        passes = self._passing(start, witnesses, is_hashed=True) if source.verify else None
        with self._or_abandoned():
            sink.copy_range(source.key, start, end, etag=source.etag, seen=passes)
        self._size_bytes += end - start

    def _render(
        self,
        footer: Footer,
        number: int,
        *,
        ordinal: int,
        moves: _Moves,
        indexes: Mapping[Place, bytes],
        walk: PageWalk | None,
    ) -> tuple[list[bytes], list[_Indexed]]:
        """The row group's metadata, in pieces."""
        group, layout = footer.row_groups[number], footer.layouts[number]
        if walk is not None and walk.pages:
            for place, _ in layout.indexes:
                if place:
                    walk.check_offset_index(indexes[place])
        pieces, cursor = [], layout.begin
        indexed = [
            _Indexed(
                {},
                moved_offset_index(indexes[offset], moves.of) if offset else b"",
                indexes[column] if column else b"",
            )
            for offset, column in layout.indexes
        ]
        for patch in layout.patches:
            pieces.append(footer.data[cursor : patch.begin])
            cursor = patch.end
            if patch.role is Role.INDEX:
                chunk, field = divmod(patch.value, INDEX_FIELDS)
                indexed[chunk].pieces[field] = len(pieces)
                pieces.append(b"")
            elif patch.role is Role.START:
                pieces.append(zigzag(moves.of(group.start) if group.size_bytes else self._size_bytes))
            elif patch.role is Role.ORDINAL:
                pieces.append(zigzag(ordinal))
            elif patch.role is Role.HINT:
                pieces.append(zigzag(moves.find(patch.value) or 0))
            elif patch.role is not Role.DROP:
                pieces.append(zigzag(moves.of(patch.value)))
        pieces.append(footer.data[cursor : layout.end])
        return pieces, indexed

    def _write_indexes(self) -> None:
        """All column indexes, then all offset indexes, as in Parquet's layout."""
        for kind, offset_field, length_field in (("column_index", 6, 7), ("offset_index", 4, 5)):
            blobs = []
            position = self._size_bytes
            for index in self._indexes:
                blob = getattr(index, kind)
                if blob:
                    self._pieces[index.pieces[offset_field]] = zigzag(position)
                    self._pieces[index.pieces[length_field]] = zigzag(len(blob))
                    blobs.append(blob)
                    position += len(blob)
            self._write(b"".join(blobs))

    def _footer(self, texts: Mapping[bytes, bytes]) -> bytes:
        groups = CompactWriter.list_header(STRUCT, self._row_groups) + b"".join(self._pieces)
        fields = {**self._like.fields, 1: (I32, zigzag(self._version)), 3: (I64, zigzag(self._rows)), 4: (LIST, groups)}
        if texts:
            encoded = b"".join(map(_key_value, texts.items()))
            fields[5] = (LIST, CompactWriter.list_header(STRUCT, len(texts)) + encoded)
        writer = CompactWriter()
        for number, (kind, value) in sorted(fields.items()):
            writer.field(number, kind, value)
        return writer.end()


def _key_value(item: tuple[bytes, bytes]) -> bytes:
    writer = CompactWriter()
    for number, text in enumerate(item, start=1):
        writer.field(number, BINARY, CompactWriter.binary(text))
    return writer.end()


def _walk_of(footer: Footer, chosen: Sequence[int]) -> PageWalk:
    """A walk over row groups of which no odd bound is stated: readers would stumble over all rows of the output."""
    for odd in odd_bounds(footer.data):
        raise MalformedThrift(odd.reason)
    return PageWalk(footer, chosen)


def _ranges(footer: Footer, chosen: Sequence[int], blooms: Iterable[Place]) -> list[tuple[int, int]]:
    """What is to be copied, in the source's order; what adjoins or overlaps is one range."""
    groups = (footer.row_groups[number] for number in chosen)
    ends = [(group.start, group.end) for group in groups if group.size_bytes]
    ends += [(offset, offset + length) for offset, length in blooms]
    merged: list[tuple[int, int]] = []
    for start, end in sorted(ends):
        limited = min(end, footer.end_of_data)
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(limited, merged[-1][1]))
        else:
            merged.append((start, limited))
    return merged

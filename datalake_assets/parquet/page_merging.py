"""Small files become row groups page by page, by the native kernel; what it cannot take, Arrow decodes and encodes.

A merge never decodes rows: it costs a fifth of decoding and encoding. What the kernel cannot take, it refuses by file,
and the refused file takes a detour: Arrow decodes it and encodes it alone, and the kernel merges what comes of that.
Where most files of a row group would take the detour, all of them are decoded, and encoded as one.

Files that are too large for one row group, and have many small ones, are merged by parts: a part is some of their row
groups, copied into a file of its own in memory.

What the kernel merged is compared with its inputs value by value, by readers that share no code with it: the comparer,
and Arrow where the comparer cannot tell.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.core.files import DataFile
from datalake_assets.core.values import Value
from datalake_assets.errors import CorruptLake, UnreadableFile
from datalake_assets.parquet.concat import ConcatWriter
from datalake_assets.parquet.decoding import fits_piece, open_parquet, tables
from datalake_assets.parquet.elements import encoded_schema
from datalake_assets.parquet.evidence import Evidence
from datalake_assets.parquet.fingerprint import same_values
from datalake_assets.parquet.footer import Footer, key_values_of
from datalake_assets.parquet.inputs import Input, OpenInput
from datalake_assets.parquet.joined_footers import all_open
from datalake_assets.parquet.keys import ARROW_SCHEMA
from datalake_assets.parquet.native import Kernel, MergeOptions, Part, Refusal, Refused, load_kernel
from datalake_assets.parquet.proof import Side, Verdict, load_comparer
from datalake_assets.parquet.rewrite_settings import RewriteSettings
from datalake_assets.parquet.schemas import Shape, conform_table
from datalake_assets.parquet.segments import Encoder, Segment, SegmentFormat, sized_pieces
from datalake_assets.parquet.sinks import checksum_like
from datalake_assets.parquet.thrift import MalformedThrift
from datalake_assets.parquet.writer import ZSTD_LEVEL, moment_of, sorted_by

__all__ = ["BrokenHalfway", "Merged", "Merger", "WholeFile", "conformed", "merger_of"]

logger = logging.getLogger(__name__)

#: A text's offset in Arrow.
OFFSET_BYTES = 4
#: Before compression a file may be so many times as large as a row group.
LARGER = 4
#: Of the memory for decoded row groups, what a merge may allocate: as much as encoding one takes.
HELD = 3
#: Why nothing is kept of a row group.
UNLIKE = "what it made does not read as the inputs do"
#: Of so many leaves the kernel says of each whether it has a bloom filter.
BLOOM_LEAVES = 63
#: So many files of a row group may be refused while it is merged, which begins anew each time; then all are encoded.
MAX_REFUSALS = 3


class WholeFile(Value, frozen=True):
    """A small input, all of its bytes in memory, proven where anybody knows their digest.

    Attributes:
        file: The file, as its manifest has it.
        data: Its bytes.
        weight_bytes: What it adds to a row group, about, decoded.
        plain_bytes: Of its pages before compression, by its footer.
        row_groups: How many.
        key_values: Of its footer.
        why: Why the kernel cannot take it; empty if it may.
        is_ours: It was encoded, and compared, a moment ago; or copied from what somebody vouches for.
        part_of: Name of the file that it is a part of; empty if it is whole.
    """

    file: DataFile
    data: pa.Buffer
    weight_bytes: int
    plain_bytes: int
    row_groups: int
    key_values: Mapping[bytes, bytes] = msgspec.field(default_factory=dict)
    why: str = ""
    is_ours: bool = False
    part_of: str = ""

    @property
    def is_proven(self) -> bool:
        """Whether somebody vouches for its bytes."""
        return self.is_ours or bool(self.file.checksum)

    def opened(self, row_bytes: int) -> OpenInput:
        """The file for Arrow; for arguments and errors see `OpenInput`."""
        return OpenInput(Input(self.file, lambda: pa.BufferReader(self.data)), row_bytes=row_bytes)


@dataclass(slots=True)
class Merged:
    """What became of files that were to become one row group.

    Attributes:
        segments: Row groups, in their order.
        merged: How many of them the kernel made.
        rejected: Files that are in none, with the reason.
        detours: Files that were decoded and encoded, with the reason.
    """

    segments: list[Segment] = field(default_factory=list)
    merged: int = 0
    rejected: dict[str, str] = field(default_factory=dict)
    detours: dict[str, str] = field(default_factory=dict)


class BrokenHalfway(Exception):
    """A file turned out to be bad when some of its rows were encoded already: begin again without it.

    Attributes:
        name: The file.
        reason: What is wrong with it.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"{name}: {reason}")


class Merger:
    """Merges small files into row groups; safe to use from several threads.

    Args:
        kernel: Merges pages.
        encoder: Encodes what the kernel cannot take.
        form: How row groups are encoded.
        settings: Of the rewrite.

    Attributes:
        copies: Whether the last merge copied most of what it read, so that it cost little more than reading that.
    """

    def __init__(self, kernel: Kernel, encoder: Encoder, form: SegmentFormat, settings: RewriteSettings) -> None:
        self.copies = True
        self._kernel, self._encoder, self._form, self._verify = kernel, encoder, form, settings.verify
        self._row_group_bytes, self._row_bytes = settings.parquet.row_group_bytes, settings.row_bytes
        self._row_width = sum(map(_width, form.schema.types))
        self._time_leaf = _time_leaf(form)
        self._bloom_leaves = sum(1 << leaf for leaf in _leaves(form, form.bloom_columns) if leaf < BLOOM_LEAVES)
        self._comparer = load_comparer()
        self._read_alike: dict[bytes | None, bool] = {}
        self._last_key_values: tuple[bytes, Mapping[bytes, bytes]] = (b"", {})
        self._options = MergeOptions(
            codec=settings.parquet.compression,
            level=settings.parquet.compression_level or ZSTD_LEVEL,
            verify=settings.verify == "pages",
            compared=settings.verify == "full",
            copy=settings.kernel == "auto",
            time_leaf=self._time_leaf,
            order="sort" if self._time_leaf is not None else "keep",
            bloom="build" if form.bloom_columns else "drop",
            memory_bytes=HELD * max(settings.row_bytes, settings.parquet.row_group_bytes),
            created_by=form.model.created_by,
        )

    def look(
        self, given: Input, data: pa.Buffer, like: Shape, may_be_copied: Callable[[int, int, int], bool]
    ) -> WholeFile | None:
        """A file as it is to be merged; None if it needs a closer look than the kernel's, or is to be copied.

        What is right of the file whose shape is given is right of this one too, but for what its key-values say: it has
        the same schema, for Arrow too, and nothing else that an output would have to state.

        Args:
            given: The input.
            data: All of its bytes.
            like: The shape of another input.
            may_be_copied: Says by a file's bytes, those before compression, and row groups whether these may be copied.
        """
        file = given.file
        (found,) = self._kernel.check([Part(data, rows=file.rows)], time_leaf=self._time_leaf)
        has_more = found.bloom_leaves & ~self._bloom_leaves or found.has_chunk_key_values or like.chunk_values
        most_bytes = max(found.most_row_bytes, found.plain_bytes)
        is_unsure = found.unstated_dictionary or most_bytes > self._row_bytes
        is_copied = may_be_copied(file.size_bytes, found.plain_bytes, found.row_groups)
        is_large = max(file.size_bytes, found.plain_bytes // LARGER) > self._row_group_bytes
        if found.refused or has_more or is_unsure or is_copied or is_large or data.size != file.size_bytes:
            return None
        schema, texts = (bytes(data[at : at + size]) for at, size in (found.schema, found.key_values))
        if schema != self._form.model.schema:
            return None
        known, key_values = self._last_key_values
        if texts != known:  # most files have the same as the one before
            try:
                key_values = key_values_of(texts)
            except MalformedThrift:  # whoever opens the file says so
                return None
            self._last_key_values = texts, key_values
        if like.known is None or key_values.get(ARROW_SCHEMA) != like.known.footer.get(ARROW_SCHEMA):
            return None
        if file.checksum:
            digest = checksum_like(file.checksum)
            digest.update(data)
            if str(digest) != file.checksum:
                return None
        return self._whole(file, data, found.plain_bytes, found.row_groups, key_values=key_values)

    def whole(self, source: OpenInput) -> WholeFile | None:
        """An input with all of its bytes; None if it is too large for that, or only some of its rows are kept.

        Raises:
            UnreadableFile: It cannot be read, or must not be decoded.
        """
        size_bytes, plain_bytes = source.file.size_bytes, source.plain_bytes
        if not source.is_whole or max(size_bytes, plain_bytes // LARGER) > self._row_group_bytes:
            return None
        source.check_decodable()
        schema = encoded_schema(source.footer_bytes, self._form.model.schema)
        why = "" if schema == self._form.model.schema else "its schema is stated otherwise"
        data, key_values = source.whole(), source.key_values
        return self._whole(source.file, data, plain_bytes, source.row_groups, key_values=key_values, why=why)

    def _whole(self, file: DataFile, data: pa.Buffer, plain_bytes: int, row_groups: int, **known: Any) -> WholeFile:
        return WholeFile(file, data, max(plain_bytes, file.rows * self._row_width), plain_bytes, row_groups, **known)

    def parts(self, source: OpenInput) -> Iterator[WholeFile] | None:
        """A file that is too large for one row group, in parts that are not; None if its rows have to be decoded.

        Only of files that somebody vouches for: the others are decoded in any case.

        Raises:
            UnreadableFile: It cannot be read, or must not be decoded; on the way too.
            UnsoundPages: Its pages are not what its metadata says; on the way too.
        """
        if not source.is_whole or not source.file.checksum or source.row_groups < 2:  # noqa: PLR2004  some
            return None
        limit_bytes = self._row_group_bytes
        plain = [group.plain_bytes for group in source.stated.groups]
        is_small = min(plain) >= 0 and max(source.largest_row_group_bytes, max(plain) // LARGER) <= limit_bytes
        schema = encoded_schema(source.footer_bytes, self._form.model.schema)
        if not is_small or schema != self._form.model.schema:
            return None
        source.check_decodable()
        return self._parts(source, plain)

    def _parts(self, source: OpenInput, plain: Sequence[int]) -> Iterator[WholeFile]:
        footer, some, size_bytes = source.footer(), list[int](), 0
        for number, group_bytes in enumerate(plain):
            if some and size_bytes + group_bytes > self._row_group_bytes:
                yield self._part(source, footer, some, size_bytes)
                some, size_bytes = [], 0
            some.append(number)
            size_bytes += group_bytes
        if some:
            yield self._part(source, footer, some, size_bytes)

    def _part(self, source: OpenInput, footer: Footer, numbers: Sequence[int], plain_bytes: int) -> WholeFile:
        """Some row groups as a file of its own; Arrow's reading of both says that they are those."""
        name, sink = source.file.name, io.BytesIO()
        wanted, writer = (
            Evidence(source.parquet.metadata, numbers),
            ConcatWriter(sink, footer, block_bytes=self._row_group_bytes),
        )
        writer.append(footer, source.read_at, numbers, seen=[wanted.feed])
        done, data = writer.close(), pa.py_buffer(sink.getvalue())
        _, found = Evidence.of_tail(done.tail)
        found.feed(0, data)
        if found.digests() != wanted.digests():
            raise CorruptLake(name, "row groups that were copied do not read as they did; nothing was committed")
        part = f"{name}\0{numbers[0]}"  # no file has such a name
        file = msgspec.structs.replace(source.file, name=part, rows=done.file.rows, checksum="")
        file = msgspec.structs.replace(file, size_bytes=data.size)
        known = {"key_values": source.key_values, "is_ours": True, "part_of": name}
        return self._whole(file, data, plain_bytes, len(numbers), **known)

    def merge(self, files: Sequence[WholeFile]) -> Merged:
        """Makes row groups of the files' rows, in their order; as a rule one.

        Raises:
            BrokenHalfway: A file is bad, and some of its rows had been encoded when that came out.
            CorruptLake: What was encoded does not decode to the rows that went in.
        """
        part_of = {each.file.name: each.part_of for each in files if each.part_of}
        try:
            done = self._merge(files)
        except BrokenHalfway as error:
            raise BrokenHalfway(part_of.get(error.name, error.name), error.reason) from error
        for name in part_of.keys() & done.rejected.keys():
            raise BrokenHalfway(part_of[name], done.rejected[name])  # other parts may be in row groups already
        done.detours = {part_of.get(name, name): why for name, why in done.detours.items()}
        return done

    def _merge(self, files: Sequence[WholeFile]) -> Merged:
        done, parts = Merged(), {each.file.name: each for each in files}
        waiting = {each.file.name: each.why for each in files if each.why}
        refusals, why = 0, ""
        while refusals <= MAX_REFUSALS and 2 * len({**done.detours, **waiting}) <= len(files):
            if not all(self._takes_detour(parts, name, reason, done) for name, reason in waiting.items()):
                break
            try:
                done.segments = [self._merged(list(parts.values()))] if parts else []
            except Refused as refused:
                names, refusals, why = list(parts), refusals + 1, refused.why
                if not 0 <= refused.index < len(names) or names[refused.index] in done.detours:
                    break
                waiting = {names[refused.index]: refused.why}
            else:
                done.merged = len(done.segments)
                return done
        left = [each for each in files if each.file.name not in done.rejected]
        return self._encoded(left, why, done)

    def _merged(self, files: Sequence[WholeFile]) -> Segment:
        """The row group that the kernel makes of files.

        Raises:
            Refused: It does not take one of them, or not all together.
        """
        is_full = self._verify == "full"
        parts = [Part(each.data, rows=each.file.rows, proven=is_full or each.is_proven) for each in files]
        made = self._kernel.merge(parts, self._options)
        self.copies = 2 * made.copied_bytes > made.in_bytes
        at = self._form.time_column
        bounds = tuple(moment_of(each, self._form.schema.field(at).type) for each in made.times or ())
        segment = self._encoder.adopted(pa.py_buffer(made.view), bounds=bounds)
        rows = sum(each.file.rows for each in files)
        reason = f"{rows} rows were merged into {made.rows}" if rows != made.rows else ""
        if is_full and not reason:
            reason = self._difference(segment, files, is_sorted=made.unsorted)
        if reason:
            logger.error("nothing is kept of a row group whose pages were merged: %s", reason)
            raise Refused(Refusal.INTERNAL, -1, reason)
        return segment

    def _difference(self, segment: Segment, files: Sequence[WholeFile], *, is_sorted: bool) -> str:
        """Why a row group is not what its inputs are, by readers that have no part in it; empty if it is.

        Where the comparer cannot tell, or rows were sorted, Arrow does, in four times the time.

        Raises:
            Refused: An input cannot be read.
        """
        if self._comparer is not None and not is_sorted and self._reads_alike(segment, files):
            sides = [Side(each.data, each.file.rows, proven=each.is_proven) for each in files]
            made, memory_bytes = Side(segment.buffer, sum(each.rows for each in sides)), self._options.memory_bytes
            found = self._comparer.compare(sides, made, segment.footer.data, memory_bytes=memory_bytes, asks_arrow=True)
            unproven = [each.data for each in files if not each.is_proven]
            if found.verdict is Verdict.EQUAL and all_open(unproven, self._comparer):
                return ""
            if found.verdict is Verdict.DIFFERS:
                of = "" if found.column is None else f" in column {self._form.model.footer.columns[found.column]!r}"
                return f"{UNLIKE}{of}: {found.reason}"
        return self._difference_by_arrow(segment, files, is_sorted=is_sorted)

    def _reads_alike(self, segment: Segment, files: Sequence[WholeFile]) -> bool:
        """Whether equal values of Parquet's are equal values of Arrow's: Arrow's own schema may say more of them."""
        for each in files:
            stated = each.key_values.get(ARROW_SCHEMA)
            if stated not in self._read_alike:
                self._read_alike[stated] = _types_agree(each, segment)
            if not self._read_alike[stated]:
                return False
        return True

    def _difference_by_arrow(self, segment: Segment, files: Sequence[WholeFile], *, is_sorted: bool) -> str:
        """The same by Arrow, which decodes both, value by value; for errors see there."""
        source = pa.BufferReader(segment.buffer)
        try:
            parquet = pq.ParquetFile(source, metadata=segment.metadata, pre_buffer=False, arrow_extensions_enabled=True)
            is_small = fits_piece(parquet, source)  # then so are the inputs together, if all is well
            if is_sorted and not is_small:
                raise Refused(Refusal.MEMORY, -1, "too many rows are out of order to be compared")
            found = (conform_table(each, self._form.schema) for each in tables(parquet, source=source))
            wanted = self._tables(files, at_once=is_small)
            if is_sorted:
                wanted = iter([sorted_by(pa.concat_tables(wanted), self._form.time_column or "")])
            return "" if same_values(wanted, found) else UNLIKE
        except UnreadableFile as error:
            names = [each.file.name for each in files]
            raise Refused(Refusal.DAMAGED, names.index(error.where), error.reason) from error
        except (pa.ArrowException, OSError, ValueError) as error:
            return f"what it made cannot be read: {str(error).splitlines()[0]}"

    def _tables(self, files: Sequence[WholeFile], *, at_once: bool = False) -> Iterator[pa.Table]:
        """The files' rows as the outputs have them; ``at_once``, a file at a time, if all are known to be small."""
        for each in files:
            if at_once:
                yield conformed(self._read(each), self._form.schema, each.file.name)
                continue
            with closing(each.opened(self._row_bytes)) as source:
                for table in source.tables():
                    yield conformed(table, self._form.schema, each.file.name)

    def _read(self, file: WholeFile) -> pa.Table:
        try:
            # its metadata need no check: they are not looked at, and whoever reads rows gets an error
            parquet = open_parquet(pa.BufferReader(file.data), is_proven=True)
            return parquet.reader.read_all(use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UnreadableFile(file.file.name, f"cannot be read: {str(error).splitlines()[0]}") from error

    def _takes_detour(self, parts: dict[str, WholeFile], name: str, why: str, done: Merged) -> bool:
        """Decodes a file, and puts what it is encoded as in its place; False if it is too large for that."""
        given, rows, size_bytes = parts[name], list[pa.Table](), 0
        try:
            for table in self._tables([given]):
                rows.append(table)
                size_bytes += table.nbytes
                if size_bytes > self._row_group_bytes:
                    return False
        except UnreadableFile as error:
            done.rejected[name] = error.reason
            del parts[name]
            return True
        segment = self._encoder.encode(rows)
        data, key_values = pa.py_buffer(segment.whole()), segment.footer.key_value_metadata
        file = msgspec.structs.replace(given.file, size_bytes=data.size, checksum="")
        parts[name] = replace(given, file=file, data=data, key_values=key_values, why="", is_ours=True)
        done.detours[name] = why
        return True

    def _encoded(self, files: Sequence[WholeFile], why: str, done: Merged) -> Merged:
        """Decodes and encodes all of them, as files that are not merged."""
        held: list[pa.Table] = []
        held_bytes = 0
        for each in files:
            segments, tables_held, bytes_before = len(done.segments), len(held), held_bytes
            try:
                for table in self._tables([each]):
                    for piece, size_bytes in sized_pieces(table, self._row_group_bytes):
                        if held and held_bytes + size_bytes > self._row_group_bytes:
                            done.segments.append(self._encoder.encode(held))
                            held, held_bytes = [], 0
                        held.append(piece)
                        held_bytes += size_bytes
            except UnreadableFile as error:
                if len(done.segments) > segments:
                    raise BrokenHalfway(each.file.name, error.reason) from error
                del held[tables_held:]
                held_bytes = bytes_before
                done.rejected[each.file.name] = error.reason
                continue
            done.detours[each.file.name] = each.why or why
        if held:
            done.segments.append(self._encoder.encode(held))
        return done


def conformed(table: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    """Casts an input's rows to the outputs' columns.

    Raises:
        UnreadableFile: Some do not fit: not every time in milliseconds fits into microseconds.
    """
    try:
        return conform_table(table, schema)
    except pa.ArrowException as error:
        reason = f"its values do not fit the other files' columns: {str(error).splitlines()[0]}"
        raise UnreadableFile(name, reason) from error


def merger_of(encoder: Encoder, form: SegmentFormat, settings: RewriteSettings) -> Merger | None:
    """What merges pages; None where there is no kernel, or where rows have to be decoded in any case."""
    by_arrow = settings.sort_by or settings.kernel == "concat" or settings.parquet.profile != "compatible"
    kernel = None if by_arrow else load_kernel()
    return Merger(kernel, encoder, form, settings) if kernel is not None else None


def _types_agree(file: WholeFile, segment: Segment) -> bool:
    """Whether Arrow reads columns of the same types from both."""
    try:
        one, other = (
            pq.ParquetFile(pa.BufferReader(data), metadata=metadata, pre_buffer=False, arrow_extensions_enabled=True)
            for data, metadata in ((file.data, None), (segment.buffer, segment.metadata))
        )
    except (pa.ArrowException, OSError, ValueError):
        return False
    return bool(one.schema_arrow.equals(other.schema_arrow, check_metadata=False))


def _width(kind: pa.DataType) -> int:
    """Bytes of a value, or of its offset."""
    try:
        return max(1, int(kind.bit_width) // 8)
    except ValueError:
        return OFFSET_BYTES


def _time_leaf(form: SegmentFormat) -> int | None:
    """The number of the column by which rows are in order."""
    return next(_leaves(form, {form.time_column} if form.time_column else ()), None)


def _leaves(form: SegmentFormat, paths: Collection[str]) -> Iterator[int]:
    """The numbers of columns."""
    return (number for number, path in enumerate(form.model.footer.columns) if path in paths)

"""Many small Parquet files to few large ones: row groups copied where they are big enough, encoded again where not.

Everything streams: at most a few row groups are in memory, whatever the inputs. An output is always a concatenation, of
row groups copied from inputs and of segments encoded a moment ago. Inputs that cannot be read, or whose columns do not
fit, are named and left out; the others go on.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from types import TracebackType
from typing import Generic, Self, TypeVar

import msgspec
import pyarrow as pa

from datalake_assets.core.files import DataFile
from datalake_assets.core.schema import column_named
from datalake_assets.core.values import Value
from datalake_assets.errors import ConfigError, CorruptLake, PreconditionFailed, UnreadableFile
from datalake_assets.parquet.adopted_footer import is_time
from datalake_assets.parquet.concat import MAX_ROW_GROUPS
from datalake_assets.parquet.footer import Footer
from datalake_assets.parquet.inputs import CHANGED, Input, OpenInput
from datalake_assets.parquet.keys import ARROW_SCHEMA, Incompatible, KeyValues, without_dropped
from datalake_assets.parquet.outputs import Opener, Outputs, WrongOrigin
from datalake_assets.parquet.page_merging import BrokenHalfway, conformed
from datalake_assets.parquet.pages import UnsoundPages, walk_pages
from datalake_assets.parquet.rewrite_settings import Kernel, RewriteSettings, workers_for
from datalake_assets.parquet.schemas import AnotherShape, Shape, inspect, shape_of
from datalake_assets.parquet.segment_queue import SegmentQueue
from datalake_assets.parquet.segments import Model, Segment, SegmentFormat, model_of, sorted_pieces
from datalake_assets.parquet.writer import ParquetSettings, use_pool
from datalake_assets.short_process import keep_freed_memory

__all__ = ["Kernel", "RewriteSettings", "Rewritten", "rewrite", "workers_for"]


FinishedT = TypeVar("FinishedT")

logger = logging.getLogger(__name__)


class Rewritten(Value, Generic[FinishedT], frozen=True):
    """What became of the inputs.

    Attributes:
        rejected: Names of the inputs that were left out, with the reason.
        outputs: Finished files and what is known of them; none if fewer than two inputs were good.
        rewritten: Names of the inputs whose rows they hold.
        copied: Row groups of the outputs that were copied, but for those that had been encoded a moment ago.
        encoded: Those that were made anew.
        merged: Of these, those that the native kernel merged page by page, without decoding rows.
        detours: Names of the inputs that were decoded though their pages were to be merged, with the reason.
    """

    rejected: Mapping[str, str]
    outputs: tuple[tuple[FinishedT, DataFile], ...] = ()
    rewritten: tuple[str, ...] = ()
    copied: int = 0
    encoded: int = 0
    merged: int = 0
    detours: Mapping[str, str] = msgspec.field(default_factory=dict)

    @property
    def gains_nothing(self) -> str:
        """Why what was written is of no use; empty if it is."""
        if len(self.rewritten) == len(self.outputs) == 1:
            return "cannot be split: a row group is as large as the target"
        if not self.encoded and 1 < len(self.rewritten) <= len(self.outputs):
            return "cannot be merged: together they have more row groups than one file holds"
        return ""


def rewrite(
    inputs: Sequence[Input],
    settings: RewriteSettings,
    opener: Opener[FinishedT],
    *,
    metadata: Mapping[str, str],
    on_progress: Callable[[int], None] | None = None,
) -> Rewritten[FinishedT]:
    """Rewrites files, in the order given, into as few as their bytes allow.

    Args:
        inputs: Files in time order. A single one is split.
        settings: How.
        opener: Where the outputs go.
        metadata: Key-values of the outputs' footers, over those of the inputs.
        on_progress: Called with the input bytes done so far.

    Raises:
        ConfigError: A column to sort by is not there.
        CorruptLake: What was written does not read as what was read; outputs were dropped.
        LakeError: The store failed; outputs were dropped.
    """
    use_pool("jemalloc")
    keep_freed_memory()
    rejected: dict[str, str] = {}
    enough = min(len(inputs), 2)
    shape: Shape | None = None
    unsound: dict[str, str] = {}
    looked_at_all = is_doubted = False
    with ThreadPoolExecutor(settings.workers, thread_name_prefix="parquet-encoder") as pool:
        task = _Task(settings, pool, opener, metadata, on_progress)
        while len(left := [each for each in inputs if each.file.name not in rejected]) >= enough:
            try:
                shape = shape or _shape_of_first(left, copied=settings.kernel == "concat")
                with _Pass(task, shape, unsound=unsound, careful=is_doubted or bool(unsound or rejected)) as attempt:
                    done = attempt.run(left, rejected)
                    if len(done.rewritten) >= enough:
                        return done
                    attempt.discard()
            except UnreadableFile as error:
                rejected[error.where] = error.reason
            except BrokenHalfway as error:
                rejected[error.name] = error.reason
            except UnsoundPages as error:
                unsound[error.where] = error.reason
            except WrongOrigin as error:
                logger.warning("%s: what is stored of %s is not that file; again, proven first", opener.where, error)
                is_doubted = True
            except AnotherShape:
                if looked_at_all:
                    raise CorruptLake(opener.where, "its files change while they are read") from None
                shape, misfits = inspect(left, exact=settings.kernel == "concat")
                looked_at_all = True
                rejected |= misfits
    return Rewritten(rejected=rejected)


def _shape_of_first(inputs: Sequence[Input], *, copied: bool) -> Shape:
    with closing(OpenInput(inputs[0])) as source:
        return shape_of(source, copied=copied)


class _Task(Value, Generic[FinishedT], frozen=True):
    """What all passes have in common: what `rewrite` was given, and threads that encode."""

    settings: RewriteSettings
    pool: ThreadPoolExecutor
    opener: Opener[FinishedT]
    metadata: Mapping[str, str]
    on_progress: Callable[[int], None] | None


class _Pass(Generic[FinishedT]):
    """One pass over the inputs; as a context it drops what it wrote when it fails.

    A pass that is not ``careful`` copies what it has not proven yet and walks pages while it copies them, which spares
    reading them twice, and has to be begun again if the proof or the walk fails. Of files that are copied whole only
    what is stored is compared with what they are known by; whether they or the store are wrong, a careful pass tells.
    """

    def __init__(self, task: _Task[FinishedT], shape: Shape, *, unsound: dict[str, str], careful: bool) -> None:
        settings = task.settings
        self._shape, self._settings, self._on_progress, self._careful = shape, settings, task.on_progress, careful
        self._unsound = unsound  # why files are decoded that might be copied otherwise
        self._where = task.opener.where
        self._key_values = shape.key_values
        self._given = {key.encode(): value.encode() for key, value in task.metadata.items()}
        self._time_column = _time_column(shape.schema, settings.time_column)
        self._model, self._unfit = _model_or_reason(shape, settings.parquet)
        self._queue = None
        if self._model is not None:
            self._queue = SegmentQueue(
                task.pool, _segment_format(shape, self._model, settings, self._time_column), settings, self._append
            )
        self._outputs = Outputs(
            task.opener,
            target_bytes=settings.parquet.target_file_bytes,
            metadata=self._output_key_values,
            verify=settings.compares_bytes,
        )
        self._like = self._model.footer if self._model is not None and shape.ours else None
        self._done_bytes = 0
        self._counts: Counter[str] = Counter()
        self._noted: dict[bytes, bytes] | None = None  # key-values of the input before
        self._is_in = False  # whether rows of the present input are in the outputs already, or on their way

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._queue is not None:
            self._queue.close()
        if error is not None:
            self.discard()

    def discard(self) -> None:
        """Drops what was written."""
        self._outputs.discard()

    def run(self, inputs: Sequence[Input], rejected: dict[str, str]) -> Rewritten[FinishedT]:
        """Reads, writes and finishes; adds inputs that it could leave out without beginning again to ``rejected``."""
        if self._settings.sort_by:
            self._sort(inputs)
        else:
            self._take_all(inputs, rejected)
        if self._queue is not None:
            self._queue.flush()
            self._queue.drain()
            rejected |= self._queue.rejected
        taken = [each.file for each in inputs if each.file.name not in rejected]
        if self._like is None and self._model is not None:
            self._like = self._model.footer
        if self._like is not None:
            self._outputs.begin(self._like)
        self._outputs.roll()
        self._count_rows(taken)
        return Rewritten(
            outputs=tuple(self._outputs.finished),
            rewritten=tuple(file.name for file in taken),
            rejected=rejected,
            copied=self._counts["copied"],
            encoded=self._queue.counts["encoded"] if self._queue is not None else 0,
            merged=self._queue.counts["merged"] if self._queue is not None else 0,
            detours=dict(self._queue.detours) if self._queue is not None else {},
        )

    def _take_all(self, inputs: Sequence[Input], rejected: dict[str, str]) -> None:
        for each in inputs:
            self._is_in = False
            try:
                self._take_input(each)
            except UnreadableFile as error:
                if self._is_in:
                    raise
                rejected[each.file.name] = error.reason
            self._done_bytes += each.file.size_bytes
            if self._on_progress is not None:
                self._on_progress(self._done_bytes)

    def _take_input(self, given: Input) -> None:
        """Takes an input; opens it only if the kernel that merges pages cannot say all that there is to know of it."""
        stated = given.keep is None and not (given.is_encoded or self._shape.ours or self._shape.lost)
        if stated and self._queue is not None and self._queue.merges:
            native = given.opened()
            data = native.read_buffer() if isinstance(native, pa.BufferReader) else None
            found = self._queue.look(given, data, self._shape, self._may_be_copied) if data is not None else None
            if found is not None:
                self._note(found.key_values)
                self._queue.add_file(found)
                return
            native.seek(0)
            given = replace(given, open=lambda: native)  # read once, however it is taken
        with closing(self._opened(given)) as source:
            self._take(source)

    def _opened(self, given: Input) -> OpenInput:
        """An input whose rows fit into the outputs.

        Raises:
            AnotherShape: They do not.
        """
        source = OpenInput(given, row_bytes=self._settings.row_bytes, trusts_kernel=self._settings.trusts_kernel)
        try:
            self._join(source)
        except (AnotherShape, UnreadableFile):
            source.close()
            raise
        return source

    def _join(self, source: OpenInput) -> None:
        """Takes over what an input states of its rows; nothing is to do where all inputs were read before."""
        if self._shape.ours:
            return
        shape = shape_of(source, copied=self._settings.kernel == "concat", like=self._shape)
        if not self._shape.fits(shape):
            raise AnotherShape
        self._note(source.key_values, shape.key_values)

    def _note(self, footer: Mapping[bytes, bytes], key_values: KeyValues | None = None) -> None:
        """Joins the key-values of an input's footer to those of the outputs; most inputs have the same."""
        telling = without_dropped(footer)
        if telling == self._noted:
            return
        self._noted = telling
        try:
            self._key_values = self._key_values.joined(key_values or KeyValues.of(footer, self._shape.schema))
        except Incompatible as error:
            raise AnotherShape from error

    def _output_key_values(self) -> dict[bytes, bytes]:
        """The key-values of the output that is being finished."""
        encoded = self._like.key_value_metadata.get(ARROW_SCHEMA) if self._like is not None else None
        return {**self._key_values.written(encoded), **self._given}

    def _take(self, source: OpenInput) -> None:
        lost = self._loss(source)
        footer = source.footer() if self._may_copy(source, lost) else None
        unsound = self._why_unsound(source, footer) if footer is not None else ""
        if footer is not None and not unsound and self._fits_as_it_is(footer):
            self._copy(source, footer)
        elif self._settings.kernel == "concat":
            why = unsound or "its schema is another"
            raise UnreadableFile(source.file.name, f"{why}, and the kernel 'concat' copies row groups only")
        elif lost:
            raise UnreadableFile(source.file.name, f"{unsound}; {lost}" if unsound else lost)
        else:
            assert self._queue is not None  # noqa: S101  what cannot be encoded would be lost
            if source.file.checksum:  # otherwise it is decoding that proves it
                self._prove(source)
            if (whole := self._queue.whole(source)) is not None:
                self._queue.add_file(whole)
                return
            if source.file.name not in self._unsound and (parts := self._queue.parts(source)) is not None:
                for part in parts:
                    self._is_in = True
                    self._queue.add_file(part)
                return
            for table in source.tables():
                rows = conformed(table, self._shape.schema, source.file.name)
                self._is_in = True
                self._queue.add(rows)
            self._counts["dropped"] += source.dropped_rows

    def _why_unsound(self, source: OpenInput, footer: Footer) -> str:
        """Why row groups must not be copied though they are worth it; proven before copying if ``careful``."""
        name = source.file.name
        if self._careful and name not in self._unsound and not source.is_encoded:
            try:
                walk_pages(footer, source.read_at)
            except UnsoundPages as error:
                self._unsound[name] = error.reason
        reason = self._unsound.get(name)
        return f"its pages are not what its metadata says ({reason})" if reason else ""

    def _may_copy(self, source: OpenInput, lost: str | None) -> bool:
        """Whether its row groups are worth keeping as they are, or can only be kept so."""
        if self._settings.kernel == "concat":
            return True
        if not source.is_whole or (self._settings.kernel == "reencode" and not source.is_encoded):
            return False
        if lost or not source.row_groups:
            return bool(lost)
        if not self._are_large(source.file.size_bytes, source.plain_bytes, source.row_groups):
            return False
        return source.largest_row_group_bytes <= self._settings.parquet.target_file_bytes

    def _are_large(self, size_bytes: int, plain_bytes: int, row_groups: int) -> bool:
        """Whether a file's row groups are so large, on average, that they may stay as they are."""
        as_large_as_ours = self._settings.parquet.row_group_bytes * self._settings.as_large
        return bool(row_groups) and (
            size_bytes >= row_groups * self._settings.copy_bytes or plain_bytes >= row_groups * as_large_as_ours
        )

    def _may_be_copied(self, size_bytes: int, plain_bytes: int, row_groups: int) -> bool:
        """The same of a file that nobody has encoded as wanted."""
        return self._settings.kernel != "reencode" and self._are_large(size_bytes, plain_bytes, row_groups)

    def _fits_as_it_is(self, footer: Footer) -> bool:
        self._like = self._like or footer
        return footer.schema_key == self._like.schema_key

    def _copy(self, source: OpenInput, footer: Footer) -> None:
        """Copies row groups after the segments before them, which keeps rows' order; half a row group may wait."""
        if self._careful or not source.file.checksum:
            self._prove(source)
        if self._queue is not None:
            if self._queue.held_bytes >= self._settings.parquet.row_group_bytes // 2:
                self._queue.flush()
            self._queue.drain()
        server_side = source.server_side(verify=self._settings.compares_bytes)
        is_sound = source.is_walked()
        vouched = source.vouched() if self._settings.compares_bytes and not self._careful else None
        self._is_in, is_compared_later = True, False
        for some in self._runs(footer):
            bounds = _bounds([source.time_bounds(index, self._time_column) for index in some])
            try:
                metadata, like = source.parquet.metadata, self._like or footer
                is_compared_later = self._outputs.append(
                    footer,
                    source.read_at,
                    some,
                    metadata=metadata,
                    bounds=bounds,
                    like=like,
                    server_side=server_side,
                    is_sound=is_sound,
                    vouched=vouched,
                    descriptor=source.descriptor,
                    seen=[source.saw],
                )
            except PreconditionFailed as error:
                raise UnreadableFile(source.file.name, CHANGED) from error
            self._counts["again" if source.is_encoded else "copied"] += len(some)
        if not is_compared_later:
            self._prove(source)

    def _prove(self, source: OpenInput) -> None:
        if self._settings.compares_bytes:
            source.prove()

    def _runs(self, footer: Footer) -> Iterator[list[int]]:
        """All row groups of a file, as many as one output holds; those of a file that is to be split one by one."""
        every = list(range(len(footer.row_groups)))
        at_once = MAX_ROW_GROUPS if footer.size_bytes <= self._settings.parquet.target_file_bytes else 1
        yield from (every[start : start + at_once] for start in range(0, len(every), at_once))

    def _loss(self, source: OpenInput) -> str | None:
        """What encoding an input again would lose, for a person; None if nothing."""
        if self._settings.kernel == "concat":
            return None
        if not self._shape.ours:
            return self._shape.lost or self._unfit
        shape = shape_of(source, copied=False, like=self._shape)
        if shape.chunk_values and self._shape.chunk_values is None:
            column = next(iter(shape.chunk_values))
            return f"column {column!r} has key-values in its parts that other files have not"
        return shape.lost or self._unfit

    def _append(self, segment: Segment) -> None:
        self._like = self._like or segment.footer
        if segment.footer.schema_key != self._like.schema_key:
            raise AnotherShape
        self._outputs.append(
            segment.footer,
            segment.read_at,
            [0],
            metadata=segment.metadata,
            bounds=segment.bounds,
            like=self._like,
            is_sound=True,
        )

    def _sort(self, inputs: Sequence[Input]) -> None:
        by = _sort_columns(self._shape.schema, self._settings.sort_by)
        absent = [name for name in by if name not in self._shape.schema.names]
        if absent:
            raise ConfigError(f"compaction.sort_by names {absent[0]!r}, which is no column")

        def tables() -> Iterator[pa.Table]:
            for each in inputs:
                with closing(self._opened(each)) as source:
                    if lost := self._loss(source):
                        raise UnreadableFile(source.file.name, lost)
                    if source.file.checksum:
                        self._prove(source)
                    for table in source.tables():
                        yield conformed(table, self._shape.schema, source.file.name)

        piece_bytes, scratch = self._settings.parquet.row_group_bytes, self._settings.scratch
        for piece in sorted_pieces(tables(), self._shape.schema, by, piece_bytes=piece_bytes, scratch=scratch):
            assert self._queue is not None  # noqa: S101  what cannot be encoded is not sorted
            self._queue.add_whole(piece)

    def _count_rows(self, files: Sequence[DataFile]) -> None:
        expected = sum(file.rows for file in files) - self._counts["dropped"]
        if self._outputs.rows != expected:
            raise CorruptLake(self._where, f"{expected} rows were read and {self._outputs.rows} written")


def _bounds(found: Sequence[tuple[datetime, ...] | None]) -> list[datetime] | None:
    """The bounds of several row groups together; None if those of one are not known."""
    known = [each for each in found if each is not None]
    return [time for each in known for time in each] if len(known) == len(found) else None


def _time_column(schema: pa.Schema, name: str | None) -> str | None:
    found = column_named(schema.names, name) if name else None
    return found if found is not None and is_time(schema.field(found).type) else None


def _sort_columns(schema: pa.Schema, names: Sequence[str]) -> tuple[str, ...]:
    """The columns to sort by, as these files spell them; what is no column stays what it is."""
    return tuple(column_named(schema.names, name) or name for name in names)


def _model_or_reason(shape: Shape, settings: ParquetSettings) -> tuple[Model | None, str | None]:
    try:
        return model_of(shape, settings), None
    except Incompatible as error:
        return None, str(error)


def _segment_format(shape: Shape, model: Model, settings: RewriteSettings, time_column: str | None) -> SegmentFormat:
    return SegmentFormat(
        schema=shape.schema,
        model=model,
        settings=settings.parquet,
        time_column=time_column,
        sorting=_sort_columns(shape.schema, settings.sort_by),
        bloom_columns=shape.bloom_columns,
        verify=settings.compares_bytes,
    )

"""Dropped files as batches: which files are new, several read at once, and whatever is wrong with one put aside.

A file is known by its name and its content. What the lake remembers of it (`core.batches.LandedItems`) tells by a
listing alone that it need not be read; where that says that it is another, its checksum decides. A file is landed as a
whole, or refused as a whole with its reason; single records that cannot be landed go to quarantine with their lines.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.types as pt

from datalake_assets.core.arrow_arrays import empty_array
from datalake_assets.core.batches import (
    Batches,
    FinishedItem,
    ItemOrigin,
    LandedItem,
    LandedItems,
    News,
    ReadRequest,
    RejectedRow,
    SourceBatch,
)
from datalake_assets.core.item_ids import NEVER, forgotten_at
from datalake_assets.core.schema import source_metadata
from datalake_assets.errors import InvalidFeed, SourceError, SourceRecreated, SourceRefused, SourceUnavailable
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.settings import Settings
from datalake_assets.sources.base import SourceObject, SourceSystem
from datalake_assets.sources.files.contents import BadFile, ContentLimits, Contents, prepared
from datalake_assets.sources.files.drop_watch import look, named_by
from datalake_assets.sources.files.dropped_objects import (
    DroppedObject,
    DroppedObjects,
    ObjectGone,
    is_drop,
    open_place,
)
from datalake_assets.sources.files.file_reading import opened
from datalake_assets.sources.files.files_declaration import FilesSettings, declared_files
from datalake_assets.sources.files.lake_rows import MODIFIED, LakeRows, options_of, records_again
from datalake_assets.sources.files.side_by_side import side_by_side
from datalake_assets.sources.files.text_values import Kind, joined, named_type
from datalake_assets.sources.sqs.sqs_model import SqsSettings

__all__ = ["FileBatches", "Files", "connect"]

#: Files of a later time than this are no younger than others: their clock was wrong.
FAR_AHEAD = timedelta(days=1)


def connect(settings: Settings) -> SourceSystem:
    """The dropped files of an installation; asks nobody yet."""
    own = settings.of(FilesSettings)
    return Files(
        endpoint=own.files_s3_endpoint or own.s3_endpoint,
        workers=own.files_workers,
        limits=ContentLimits(unpacked_bytes=own.files_max_unpacked_mb << 20),
        queues=settings.of(SqsSettings),
    )


class Files:
    """Dropped files; implements `SourceSystem`.

    Args:
        endpoint: Of S3; None: AWS.
        workers: Files that are read at once.
        limits: How large packed files may become.
        queues: How queues of S3's notifications are reached.
    """

    def __init__(self, *, endpoint: str | None, workers: int, limits: ContentLimits, queues: SqsSettings) -> None:
        self._endpoint, self._workers, self._limits, self._queues = endpoint, workers, limits, queues
        self._places: dict[str, DroppedObjects] = {}

    def place(self, feed: Feed) -> DroppedObjects:
        """Where a feed's files are dropped."""
        location = declared_files(feed).location
        if location not in self._places:
            self._places[location] = open_place(location, endpoint=self._endpoint)
        return self._places[location]

    def read(self, feed: Feed, request: ReadRequest) -> Batches:
        """Implements `SourceSystem`."""
        return FileBatches(feed, request, self.place(feed), workers=self._workers, limits=self._limits)

    def discover(self) -> Iterator[SourceObject]:
        """Implements `SourceSystem`: there is no list of places."""
        return iter(())

    def check(self, feed: Feed) -> None:
        """Implements `SourceSystem`: lists the place, and reads the first file."""
        batches = FileBatches(feed, ReadRequest(), self.place(feed), workers=1, limits=self._limits)
        next(iter(self.place(feed).list()), None)
        _ = batches.schema

    def count(self, feed: Feed) -> int | None:  # noqa: ARG002  files have no count
        """Implements `SourceSystem`: nobody knows without reading them."""
        return None

    def news(self, feed: Feed, landed: LandedItems, cursor: str) -> News:
        """Implements `TellsNews`."""
        place, source = self.place(feed), declared_files(feed)
        seen, after = look(place, cursor)
        if source.events_queue:
            named = named_by(source.events_queue, place, self._queues)
            seen = list({each.name: each for each in (*seen, *named)}.values())
        batches = FileBatches(feed, ReadRequest(landed=landed), place, workers=1, limits=self._limits)
        return News(batches.wanted(seen), after.to_cursor(), len(seen))

    def decode_items(self, feed: Feed, rows: Sequence[RejectedRow], schema: pa.Schema) -> Iterator[SourceBatch]:
        """Implements `DecodesItems`; the files are not asked, which may be gone."""
        return records_again(feed, rows, schema)

    def close(self) -> None:
        """Implements `SourceSystem`."""
        for place in self._places.values():
            place.close()


@dataclass(frozen=True, slots=True)
class _Pending:
    """A file that is to be read, and what the lake knows of it."""

    dropped: DroppedObject
    former: LandedItem | None


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of a file: its name there, what its values are, and whether records may lack it."""

    original: str
    kind: Kind
    is_optional: bool


class FileBatches:
    """One read of a feed's files, so many at a time; implements `Batches` and `ReadInParts`.

    Args:
        feed: The feed.
        request: What to read.
        place: Where the files are.
        workers: Files that are read at once.
        limits: How large packed files may become.
    """

    def __init__(
        self, feed: Feed, request: ReadRequest, place: DroppedObjects, *, workers: int, limits: ContentLimits
    ) -> None:
        self._feed, self._source, self._place = feed, declared_files(feed), place
        self._lake_rows = LakeRows(feed)
        self.request, self._workers, self._limits = request, workers, limits
        self.recreated, self.unfinished = False, ""
        self._schema: pa.Schema | None = None
        self._problems: list[str] = []
        self._unread: dict[str, str] = {}
        # by name and checksum: what the columns of files are whose types were inferred
        self._kinds_of: dict[tuple[str, str], dict[str, Kind]] = {}
        self.has_more = False

    @property
    def time_column(self) -> str | None:
        """Implements `Batches`."""
        return None if self._feed.kind is FeedKind.TABLE else self._feed.row_time

    def acknowledge(self) -> None:
        """Implements `Batches`: files stay where they were dropped; the lake's ledger knows them."""

    # which files

    @property
    def _min_age(self) -> timedelta:
        return timedelta(seconds=self._source.min_age_s)

    def wanted(self, listed: Iterable[DroppedObject]) -> tuple[str, ...]:
        """Names of files that are to be read, of those that were listed."""
        return tuple(each.dropped.name for each in self._pending(listed))

    def _refuse_other_place(self) -> None:
        """Makes sure that names are those of the files that were landed: they are relative to where files are dropped.

        Raises:
            SourceRecreated: They may be those of other files, and nobody takes them for the same.
        """
        before = self.request.source_id
        if self._feed.kind is FeedKind.TABLE or before in {"", self._place.uri} or self.request.new_epoch:
            return
        reason = f"what was landed is of {before}: a file of the same name would be taken for one of these"
        cure = "add a feed for the other place; or, if these are the same files by the same names, moved, --new-epoch"
        raise SourceRecreated(f"files in {self._place.uri}", reason, cure=cure)

    def _pending(self, looked_at: Iterable[DroppedObject] | None = None) -> list[_Pending]:
        """The files that are to be read now, the oldest first; says how many wait."""
        self._refuse_other_place()
        found = self._listed() if looked_at is None else looked_at
        listed = [each for each in found if is_drop(each.name, self._source.pattern)]
        is_whole = self._place.are_whole or self._feed.kind is FeedKind.TABLE
        settled = datetime.max.replace(tzinfo=UTC) if is_whole else datetime.now(UTC) - self._min_age
        # a time that is far ahead says nothing of when the file was written
        ahead = datetime.now(UTC) + FAR_AHEAD
        young = [each for each in listed if settled < each.modified < ahead]
        odd = [each.name for each in listed if not _is_text(each.name)]
        self._problems = [f"{name.encode(errors='replace').decode()}: its name is not UTF-8" for name in odd]
        left = {*odd, *(each.name for each in young)}
        old = [each for each in listed if each.name not in left]
        landed = self.request.landed if self._feed.kind is not FeedKind.TABLE else None
        known = landed.known([each.name for each in old]) if landed is not None else [None] * len(old)
        wanted = [
            _Pending(each, former)
            for each, former in zip(old, known, strict=True)
            if former is None or self._is_news(each, former)
        ]
        wanted.sort(key=lambda each: (each.dropped.modified, each.dropped.name))
        if self._feed.kind is not FeedKind.TABLE:
            wanted = [each for each in wanted if each.dropped.name not in self._unread]
            self.has_more = len(wanted) > self._source.max_files
            wanted = wanted[: self._source.max_files]
        if young:
            self._problems.append(f"{len(young):,} files were written a moment ago, and wait for the next export")
        return wanted

    def _listed(self) -> Iterator[DroppedObject]:
        if self.request.items is None:
            return self._place.list()
        found = (self._place.find(name) for name in self.request.items)
        return (each for each in found if each is not None)

    def _is_news(self, dropped: DroppedObject, former: LandedItem) -> bool:
        if former.state != "landed":
            return True
        if former.refused:
            return former.version != self._refused_version(dropped)
        return self._source.on_change != "ignore" and former.version != dropped.version

    def _refused_version(self, dropped: DroppedObject) -> str:
        """What a refused file is known by: it is read again once it changes, or what the feed says of its files."""
        said = f"{self._source.model_dump_json()} {self._feed.schema_policy}"
        return f"{dropped.version} {hashlib.blake2b(said.encode(), digest_size=8).hexdigest()}"

    # which columns

    @property
    def schema(self) -> pa.Schema:
        """Implements `Batches`: the feed's, or of a feed without rows what all of its files are."""
        if self._schema is None:
            known = self.request.landed.schema if self.request.landed is not None else None
            own = {self._source.file_column, self._source.modified_column}
            if known is not None and (missing := own - set(known.names)):
                reason = f"source: rows have no column {min(missing)!r}: file_column and modified_column are for life"
                raise InvalidFeed(self._feed.name, reason)
            if known is not None and self._feed.schema_policy != "evolve":
                self._schema = known.remove_metadata()
            else:
                self._schema = self._inferred(known)
        return self._schema

    def _inferred(self, known: pa.Schema | None) -> pa.Schema:
        """The columns of all files that wait; those that are known stay as they are."""
        names = self._columns(known, exact=False)
        if not all(column.kind.is_sure for column in names.values()):
            names = self._columns(known, exact=True)
        own = (pa.field(self._source.file_column, pa.string()), pa.field(self._source.modified_column, MODIFIED))
        fields = list(known) if known is not None else []
        taken = {each.name for each in (*fields, *own)}
        fields += [
            pa.field(name, self._type_of(name, column.kind), metadata=source_metadata(column.original))
            for name, column in names.items()
            if name not in taken
        ]
        return pa.schema(fields if known is not None else [*fields, *own])

    def _columns(self, known: pa.Schema | None, *, exact: bool) -> dict[str, _Column]:
        """What the columns of all files that wait are, by their names in the lake."""
        with ThreadPoolExecutor(self._workers, "files") as pool:
            kinds = pool.map(lambda each: self._kinds(each, known, exact=exact), self._pending())
            found = [each for each in kinds if each is not None]
        if known is None and found:
            found = self._with_times(found)
        names: dict[str, _Column] = {}
        for columns in found:
            is_fixed = bool(names) and self._feed.schema_policy != "evolve"
            others = columns.keys() - names.keys() if is_fixed else frozenset[str]()
            # such a file is refused once it is read; or, of JSON, the records that have these keys
            if others and not next(iter(columns.values())).is_optional:
                continue
            for name, column in columns.items():
                if name in others:
                    continue
                before = names.get(name, column)
                names[name] = replace(before, kind=joined(before.kind, column.kind))
        return names

    def _with_times(self, found: Sequence[dict[str, _Column]]) -> list[dict[str, _Column]]:
        """The columns of files that have what partitions the rows: no other says what a new feed is like.

        Raises:
            InvalidFeed: None has it.
        """
        wanted = self.time_column
        if wanted in {None, self._source.file_column, self._source.modified_column}:
            return list(found)
        those = [each for each in found if wanted in each]
        if not those:
            raise InvalidFeed(self._feed.name, f"time_column: no file that can be read has a column {wanted!r}")
        return those

    def _type_of(self, name: str, kind: Kind) -> pa.DataType:
        if name in self._source.columns:
            return named_type(self._source.columns[name])
        if name == self.time_column and pt.is_date(kind.type):
            return pa.timestamp("us")  # midnight: partitions are made of times
        return kind.type

    def _kinds(self, pending: _Pending, known: pa.Schema | None, *, exact: bool) -> dict[str, _Column] | None:
        """A file's columns by their names in the lake; None if it cannot be read, or has no other than are known."""
        with suppress(BadFile, ObjectGone, SourceError), closing(self._contents(pending.dropped)) as contents:
            file = opened(pending.dropped.name, contents, options_of(self._source))
            if known is not None and file.has_fixed_columns and set(self._lake_rows.names(file)) <= set(known.names):
                return None
            kinds = file.kinds(exact=exact)
            self._kinds_of[pending.dropped.name, contents.checksum] = kinds
            originals = self._lake_rows.names(file)
            return {
                name: _Column(original, kinds[original], is_optional=not file.has_fixed_columns)
                for name, original in originals.items()
            }
        return None

    # one file

    def _contents(self, dropped: DroppedObject) -> Contents:
        stream = self._place.open(dropped)
        try:
            return prepared(stream, is_kept=True, encoding=self._source.encoding, limits=self._limits)
        except OSError as error:
            cure = "make room there, or set TMPDIR to a folder that has some; the file waits"
            reason = f"it cannot be read, or unpacked in {tempfile.gettempdir()}: {error.strerror}"
            raise SourceUnavailable(f"file {dropped.name}", reason, cure=cure) from error

    def _batches(self, pending: _Pending, schema: pa.Schema) -> Iterator[SourceBatch]:
        """The rows of one file, the last batch with what is to be remembered of it."""
        began = time.monotonic()
        dropped, former = pending.dropped, pending.former
        try:
            contents = self._contents(dropped)
        except BadFile as error:
            item = _item(dropped, f"refused:{dropped.version}", former)
            yield self._refusal(pending, item, schema, str(error), time.monotonic() - began)
            return
        with closing(contents):
            item = _item(dropped, contents.checksum, former)
            if former is not None and former.item == item and former.state == "landed" and not former.refused:
                yield self._last(pending, replace(former, version=dropped.version), schema)
                return
            modified = former.modified if former is not None and former.item == item else dropped.modified
            rows = rejected = 0
            waiting: SourceBatch | None = None
            try:
                for batch in self._rows(dropped, contents, schema, item, modified):
                    if waiting is not None:
                        yield waiting
                    rows += batch.rows.num_rows + len(batch.rejected)
                    rejected += len(batch.rejected)
                    waiting = batch
            except BadFile as error:
                if rows:
                    raise AssertionError(dropped.name) from error
                yield self._refusal(pending, item, schema, str(error), time.monotonic() - began)
                return
            if not self._place.is_unchanged(dropped):
                raise SourceRefused(f"file {dropped.name}", "it was changed while it was read", cure="run it again")
            version, size, seconds = dropped.version, dropped.size_bytes, time.monotonic() - began
            landed = LandedItem(dropped.name, item, version, size, modified, rows, rejected, seconds)
            last = self._last(pending, landed, schema)
            yield last if waiting is None else replace(waiting, finished=last.finished, source_id=last.source_id)

    def _rows(
        self, dropped: DroppedObject, contents: Contents, schema: pa.Schema, item: str, modified: datetime
    ) -> Iterator[SourceBatch]:
        kinds = self._kinds_of.pop((dropped.name, contents.checksum), None)
        file = opened(dropped.name, contents, options_of(self._source), kinds=kinds)
        return self._lake_rows.rows(file, schema, name=dropped.name, item=item, modified=modified)

    # batches

    def _last(self, pending: _Pending, landed: LandedItem, schema: pa.Schema) -> SourceBatch:
        # of a content that was landed in part and is gone, nobody can land the rest
        is_half = pending.former is not None and pending.former.state == "landing"
        finished = FinishedItem(
            landed,
            pending.former,
            replaces=self._source.on_change == "replace" or (self._source.on_change == "ignore" and is_half),
            name_column=self._source.file_column,
        )
        batch = self._nothing(schema, landed.item, landed.name)
        return replace(batch, finished=(finished,), source_id=self._place.uri)

    def _nothing(self, schema: pa.Schema, item: str, name: str) -> SourceBatch:
        """No rows of a file."""
        empty = pa.RecordBatch.from_arrays([empty_array(each.type) for each in schema], schema=schema)
        return self._lake_rows.batch(empty, item, name=name)

    def _refusal(self, pending: _Pending, item: str, schema: pa.Schema, reason: str, seconds: float) -> SourceBatch:
        dropped = pending.dropped
        if self._feed.kind is FeedKind.TABLE:
            raise SourceRefused(
                f"file {dropped.name}", reason, cure="mend it, or take it away: a table is all of its files"
            )
        version, size = self._refused_version(dropped), dropped.size_bytes
        landed = LandedItem(dropped.name, item, version, size, dropped.modified, 0, 1, seconds, refused=reason)
        origin = ItemOrigin(item, forgotten_at(NEVER), dropped.name)
        row = RejectedRow(dropped.name.encode(), f"the file was refused: {reason}", item, origin=origin)
        return replace(self._last(pending, landed, schema), rejected=(row,))

    def __iter__(self) -> Iterator[SourceBatch]:
        """Implements `Batches`."""
        schema = self.schema
        pending = self._pending()
        unread = self._unread

        def read(one: _Pending) -> Iterator[SourceBatch]:
            """A file that cannot be read now is read another time, and keeps no other from being landed."""
            batches = self._batches(one, schema)
            try:
                first = next(batches, None)
            except ObjectGone:
                unread[one.dropped.name] = f"{one.dropped.name}: it is gone, or another by now"
                return
            except SourceError as error:
                if self._feed.kind is FeedKind.TABLE:
                    raise
                unread[one.dropped.name] = str(error)
                return
            if first is not None:
                yield first
                yield from batches

        try:
            if self.request.new_epoch and self.request.source_id and self._feed.kind is not FeedKind.TABLE:
                yield replace(self._nothing(schema, "", ""), source_id=self._place.uri)  # though no file be new
            yield from side_by_side(pending, read, workers=self._workers)
        finally:
            self._schema = None  # the next iteration asks anew
            self._kinds_of.clear()
        said = [f"{len(unread):,} files could not be read and wait: {next(iter(unread.values()))}"] if unread else []
        self.unfinished = "; ".join([*said, *self._problems])


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _item(dropped: DroppedObject, checksum: str, former: LandedItem | None) -> str:
    """A file's identity: its former one if its content is the same, else one that it never had."""
    if former is not None and former.item.rpartition("#")[2].partition("@")[0] == checksum:
        return former.item
    return f"{dropped.name}#{checksum}{f'@{former.number}' if former is not None else ''}"

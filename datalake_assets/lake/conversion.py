"""A feed is kept as something else from now on: its rows are written anew beside the old form, then readers switch.

While a conversion is under way the feed's state says so, and whoever lands rows is refused. What such a writer had
committed before is in the copy, or it is not: then its end is refused, too, so that how far it has read is never noted,
and the rows are read again. Before readers switch, all rows of both forms are compared. The switch itself is one
compare-and-swap of the state, which decides, and one of the feed's document, which follows from it (ADR 031).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import msgspec
import numpy as np
import pyarrow as pa

from datalake_assets.core.feed_state import Conversion, FeedState
from datalake_assets.core.files import DataFile, data_file_name
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import version_number
from datalake_assets.core.position import OffsetsPosition, Position, common_position
from datalake_assets.core.schema import schema_from_json, schema_to_json
from datalake_assets.errors import CommitConflict, ConfigError, CorruptLake, ObjectNotFound, SnapshotExpired
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind, PositionKind
from datalake_assets.lake.commit import Change, Planned
from datalake_assets.lake.layout import FeedFolder, StateLog, avro_folder, form_of, new_id
from datalake_assets.lake.replay import finish_replays
from datalake_assets.lake.scan import committed_files
from datalake_assets.lake.store.base import StagedFile, Store
from datalake_assets.lake.tables import folder_of, open_table
from datalake_assets.parquet.fingerprint import row_hashes
from datalake_assets.parquet.rolling import RollingWriter
from datalake_assets.parquet.schemas import conform_table
from datalake_assets.parquet.writer import ParquetSettings
from datalake_assets.policies import FormerForm

__all__ = ["Converted", "convert", "drop_former"]

logger = logging.getLogger(__name__)

#: Partitions of a stream that one snapshot of an Iceberg table takes in.
TOGETHER = 32
#: Times that a partition is read because its files were merged meanwhile.
ATTEMPTS = 5

_T = TypeVar("_T")
#: A partition's staged files.
Files = tuple[tuple[StagedFile, DataFile], ...]
#: Stores a feed's format in its document; gives the feed as stored.
Switch = Callable[[Feed], Feed]


@dataclass(frozen=True, slots=True)
class Converted:
    """What a conversion came to.

    Attributes:
        feed: The feed as it is kept now.
        partitions: Partitions that were compared.
        rows: Their rows.
        is_undone: The conversion was given up: all is as before it.
    """

    feed: Feed
    partitions: int = 0
    rows: int = 0
    is_undone: bool = False


def convert(
    store: Store,
    feed: Feed,
    to: str,
    *,
    source_schema: Callable[[], pa.Schema],
    switch: Switch,
    on_progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> Converted:
    """Keeps a feed as another form; goes on with a conversion that was interrupted, or gives that up.

    Args:
        store: The lake.
        feed: The feed as its document has it.
        to: ``parquet`` or ``iceberg``; the form that it has, to give up a conversion that is under way.
        source_schema: Asks the source for its columns: Iceberg has fewer types, and files get those again.
        switch: Stores the feed's new format.
        on_progress: Called with the partitions done, and how many there are.

    Raises:
        ConfigError: The feed cannot be converted; says why.
        CommitConflict: Somebody else wrote to it meanwhile, or gave the conversion up; it is as before.
        LakeError: The store or the catalog failed; a repetition goes on.
    """
    log = _state_of(store, feed)
    state = log.load()
    if state.conversion is None and state.form not in {"", form_of(feed)}:  # decided, and the document is of before
        type_, _, folder = state.form.partition(":")
        return _settled(store, switch(_kept_as(feed, type_, folder)))
    if to == feed.format.type and state.conversion is None:
        if feed.format.former is not None:  # whoever switched may have died just then
            _settled(store, feed)
        raise ConfigError(f"feed {feed.name!r} is kept as {to} already")
    if state.conversion is not None and (to == feed.format.type or state.conversion.is_given_up):
        _give_up(store, feed, state.conversion)
        if to == feed.format.type:
            return Converted(feed, is_undone=True)
        state = log.load()
    if state.conversion is None:
        _refuse(store, feed, state)
        state = _begin(store, feed, to, source_schema)
    if state.conversion is None:
        raise CommitConflict(feed.path, "somebody else changed what the feed is kept as", cure="look at it again")
    return _Conversion(store, feed, state.conversion).run(switch, on_progress)


def _settled(store: Store, feed: Feed) -> Converted:
    """What a conversion came to that is decided; the feed's summary is that of its new form from now on."""
    folder = folder_of(store, feed)
    versions = {f"v{each.number}" for each in folder.state.load().versions}
    keys = [key for key in folder.partition_keys() if feed.kind is not FeedKind.TABLE or key in versions]
    reports = [folder.report(key, _Conversion.manifest(folder, key)) for key in keys]
    folder.summary.rebuild(reports, at=folder.summary.last_export() or store.now())
    return Converted(feed, len(reports), sum(each.rows for each in reports))


def drop_former(store: Store, feed: Feed, switch: Switch) -> Feed:
    """Deletes what is kept of a feed from before its conversion, and forgets it; repeat what was interrupted.

    Raises:
        ConfigError: There is nothing.
    """
    former = feed.format.former
    if former is None:
        raise ConfigError(f"nothing is kept of feed {feed.name!r} from before a conversion")
    state = _state_of(store, feed).load()
    if state.conversion is not None or state.form != form_of(feed):  # what was former then may be what is read now
        raise ConfigError(f"feed {feed.name!r} was converted meanwhile; look at it again")
    deleted = folder_of(store, _kept_as(feed, former.type, former.folder)).delete_form()
    logger.info("%s: %d objects of its former form were deleted", feed.path, deleted)
    return switch(feed.model_copy(update={"format": feed.format.model_copy(update={"former": None})}))


def _state_of(store: Store, feed: Feed) -> StateLog:
    return StateLog(store, f"{FeedFolder(store, feed).control}/feed.json", new_id)


def _kept_as(feed: Feed, type_: str, folder: str) -> Feed:
    """The feed in another form; what it is now would be its former one."""
    former = FormerForm(type=feed.format.type, folder=feed.data_path)
    update = {"type": type_, "folder": "" if folder == feed.path else folder, "former": former}
    return feed.model_copy(update={"format": feed.format.model_copy(update=update)})


def _refuse(store: Store, feed: Feed, state: FeedState) -> None:
    if not feed.is_exported:
        raise ConfigError(f"feed {feed.name!r} is {feed.written_by}: only feeds that are exported can be converted")
    if feed.format.also or any(store.list(avro_folder(feed))):
        raise ConfigError(f"feed {feed.name!r} is written as Avro: take 'also' out of its format, and repair it, first")
    if feed.is_mart:
        raise ConfigError(f"feed {feed.name!r} is a mart, which is kept as Parquet files")
    if feed.partition_prefix:
        raise ConfigError(
            f"feed {feed.name!r} has a partition_prefix, which is for plain folders: it cannot be converted"
        )
    if feed.write == "merge":
        raise ConfigError(f"feed {feed.name!r} is merged by key, and such feeds cannot be converted yet")
    if feed.format.parts:
        raise ConfigError(f"feed {feed.name!r} keeps parts apart, which plain folders cannot: it cannot be converted")
    if feed.position_kind is PositionKind.IDS:
        raise ConfigError(f"feed {feed.name!r} remembers items one by one, and such feeds cannot be converted yet")
    if feed.format.former is not None:
        raise ConfigError(
            f"of feed {feed.name!r} the form from before the last conversion is kept;"
            f" delete it first: 'datalake feeds convert {feed.name} --drop-old'"
        )
    if state.removing:
        raise ConfigError(f"versions of feed {feed.name!r} are being removed; 'datalake repair {feed.name}' ends that")


def _begin(store: Store, feed: Feed, to: str, source_schema: Callable[[], pa.Schema]) -> FeedState:
    """Settles what is under way, then refuses writers, by one compare-and-swap."""
    open_table(store, feed).repair()
    finish_replays(folder_of(store, feed))
    state = _state_of(store, feed).load()
    schema = state.schema and schema_to_json(_new_columns(feed, schema_from_json(state.schema), to, source_schema))
    begun = Conversion(new_id(), to, _free_folder(store, feed, to), schema)

    def rule(now: FeedState) -> FeedState:
        if now.conversion is not None or now.schema != state.schema:
            return now
        return replace(now, form=form_of(feed), conversion=begun)

    return _state_of(store, feed).change(rule)


def _new_columns(feed: Feed, known: pa.Schema, to: str, source_schema: Callable[[], pa.Schema]) -> pa.Schema:
    """The feed's columns in types that the new form keeps: in its source's, if that is what Iceberg had no type for."""
    from datalake_assets.lake.iceberg.iceberg_schemas import storable, stored_as  # noqa: PLC0415  it need not be there

    if to == "iceberg":
        return storable(known, source=f"feed {feed.name!r}")
    kinds = {field.name: field.type for field in source_schema()}

    def as_it_came(field: pa.Field) -> pa.Field:
        kind = kinds.get(field.name)  # another one would change values
        return field.with_type(kind) if kind is not None and stored_as(kind) == field.type else field

    return pa.schema(map(as_it_came, known), metadata=known.metadata)


def _free_folder(store: Store, feed: Feed, to: str) -> str:
    """Where the new form lies: under the feed's own name if nothing lies there, else beside it."""
    for folder in (feed.path, f"{feed.path}.{to}"):
        if folder != feed.data_path and next(iter(store.list(folder)), None) is None:
            return folder
    raise ConfigError(f"{feed.path}.{to} is not empty: something else lies there; move it away")


def _give_up(store: Store, feed: Feed, conversion: Conversion) -> None:
    """Deletes what was copied, then lets writers in again, and other conversions; not if this one is over by now."""
    log, over = _state_of(store, feed), msgspec.structs.replace(conversion, is_given_up=True)

    def rule(now: FeedState) -> FeedState:
        is_ours = now.conversion is not None and now.conversion.id == conversion.id
        return replace(now, conversion=over) if is_ours else now

    if log.change(rule).conversion != over:
        return
    folder_of(store, _kept_as(feed, conversion.to, conversion.folder)).delete_form()
    log.change(lambda now: replace(now, conversion=None) if now.conversion == over else now)


class _Over(CommitConflict):
    """Others ended the conversion, or go on with it: what is copied is theirs."""


class _Unfit(ConfigError):
    """A value does not fit into the new form, and will not next time."""


class _Conversion:
    """A conversion that has begun."""

    def __init__(self, store: Store, feed: Feed, conversion: Conversion) -> None:
        self._store, self._feed, self._conversion = store, feed, conversion
        self._log, self._target = _state_of(store, feed), _kept_as(feed, conversion.to, conversion.folder)
        self._old, self._new = folder_of(store, feed), folder_of(store, self._target)
        self._old_schema = self._log.load().schema

    def run(self, switch: Switch, on_progress: Callable[[int, int], None]) -> Converted:
        """Copies what is not copied yet, compares everything, and switches."""
        if not self._conversion.is_cleared:
            self._clear()
        elif self._conversion.to == "iceberg":
            open_table(self._store, self._target).repair()  # what an interrupted commit of ours left
        keys = self._keys()
        try:
            self._copy_all(keys, on_progress)
            rows = sum(self._compared(key) for key in keys)
            self._check_no_others(keys)
            self._shared_position()  # rows of an export that has not ended may have been copied since
        except _Over:
            raise
        except (CommitConflict, _Unfit):
            _give_up(self._store, self._feed, self._conversion)
            raise
        self._decide()
        return replace(_settled(self._store, switch(self._target)), partitions=len(keys), rows=rows)

    def _clear(self) -> None:
        """Deletes what a conversion that was given up may have left, once.

        That there is nothing is found out before the conversion is taken over by a new id, so that whoever sleeps in
        between, and does not get it, deletes nothing that others of this conversion have copied.
        """
        is_clear, mine = not self._new.has_form(), new_id()
        self._change(
            lambda now: now if now.is_cleared else msgspec.structs.replace(now, id=mine, is_cleared=is_clear), mine=mine
        )
        if not self._conversion.is_cleared:
            self._new.delete_form()
            self._change(lambda now: msgspec.structs.replace(now, is_cleared=True))

    def _change(self, rule: Callable[[Conversion], Conversion], *, mine: str = "") -> None:
        def changed(now: FeedState) -> FeedState:
            if now.conversion is None or now.conversion.id != self._conversion.id or now.conversion.is_given_up:
                return now
            return replace(now, conversion=rule(now.conversion))

        found = self._log.change(changed).conversion
        if found is None or found.id not in {self._conversion.id, mine} or found.is_given_up:
            reason = "not converted here: somebody else ended the conversion, or goes on with it"
            raise _Over(self._feed.path, reason, cure="look at it again")
        self._conversion = found

    def _keys(self) -> tuple[str, ...]:
        """The partitions; versions in the order in which they were pulled."""
        if self._feed.kind is not FeedKind.TABLE:
            return tuple(key for key in self._old.partition_keys() if self._holds(self.manifest(self._old, key)))
        versions = {f"v{each.number}": each.as_of for each in self._log.load().versions}
        return tuple(sorted(versions, key=lambda key: (versions[key], version_number(key))))

    def _holds(self, manifest: Manifest) -> bool:
        """Whether there is anything to take along: rows, or a position, without which deleted rows would come again."""
        is_shared = self._is_by_offsets and self._new.commits_at_once
        return bool(manifest.files) or (manifest.position is not None and not is_shared)

    @property
    def _is_by_offsets(self) -> bool:
        return self._feed.position_kind is PositionKind.OFFSETS

    @staticmethod
    def manifest(folder: FeedFolder, key: str) -> Manifest:
        """A partition's manifest, once what was interrupted is finished."""
        log = folder.log(key)
        return log.settle(log.load()).manifest

    def _copy_all(self, keys: Sequence[str], on_progress: Callable[[int, int], None]) -> None:
        shared = self._shared_position()
        at_once = TOGETHER if self._new.commits_at_once and self._feed.kind is FeedKind.STREAM else 1
        kept_lines = max(1, min(20, 1000 // max(len(keys), 1)))
        for start in range(0, len(keys), at_once):
            on_progress(start, len(keys))
            self._change(lambda now: now)  # is it still ours?
            self._copy(keys[start : start + at_once], shared, kept_lines)

    def _shared_position(self) -> Position | None:
        """The position of an Iceberg table of numbered rows, which is one for all partitions.

        Raises:
            CommitConflict: A partition has rows that others of the same read have not: that export has not ended. It
                may read them again, and only the old form knows where they were, though they be deleted by now.
        """
        if not self._is_by_offsets:
            return None
        state = self._log.load()
        positions = [self.manifest(self._old, key).position for key in self._old.partition_keys()]
        known = [each for each in positions if isinstance(each, OffsetsPosition)]
        found = common_position(known, epoch=state.epoch, hint=state.hint, rejected=state.rejected)
        if found is None:
            reason = "an export of it was interrupted, or is under way"
            raise _others(self._feed, reason, cure=f"end it by 'datalake export --stream {self._feed.name}'")
        return found if self._new.commits_at_once else None

    def _copy(self, keys: Sequence[str], shared: Position | None, kept_lines: int) -> None:
        """Copies partitions that are not copied yet, in one commit where the new form has one for all."""
        folder = self._new.pinned()
        changes: dict[str, Change] = {}
        staged: list[StagedFile] = []
        try:
            for key in keys:
                commit_id = f"{self._conversion.id}-{key}"
                if _is_there(self.manifest(folder, key), commit_id):
                    continue
                manifest, files = self._again(key, partial(self._staged, folder, key))
                staged += [each for each, _ in files]
                past = replace(manifest, history=manifest.history[-kept_lines:])
                position = shared if shared is not None else manifest.position
                changes[key] = Change(commit_id, "convert", files, self._plan(commit_id, position, past))
        except BaseException:
            for each in staged:
                folder.data_store.discard_staged(each)
            raise
        for _ in folder.commit(changes):
            pass

    def _plan(self, commit_id: str, position: Position | None, past: Manifest) -> Callable[[Manifest], Planned | None]:
        def plan(base: Manifest) -> Planned | None:
            if _is_there(base, commit_id):
                return None
            return Planned(position=position, schema=self._conversion.schema, follows=past)

        return plan

    def _again(self, key: str, read: Callable[[Manifest], _T]) -> _T:
        """Reads a partition of the old form; from the beginning if its files were merged meanwhile."""
        for attempt in range(ATTEMPTS):
            manifest = self.manifest(self._old, key)
            try:
                return read(manifest)
            except (SnapshotExpired, ObjectNotFound, OSError):
                if attempt == ATTEMPTS - 1 or self.manifest(self._old, key).files == manifest.files:
                    raise
        raise AssertionError

    def _staged(self, folder: FeedFolder, key: str, manifest: Manifest) -> tuple[Manifest, Files]:
        """A partition as it was read, and its rows in new files, which nobody sees yet."""
        if not manifest.files or self._conversion.schema is None:
            return manifest, ()
        schema, time_column = schema_from_json(self._conversion.schema), self._feed.row_time
        is_table = self._feed.kind is FeedKind.TABLE
        written = folder.prepared(schema, time_column=None if is_table else time_column)
        writer = self._writer(folder, written, key, manifest)
        try:
            for batch in self._rows(self._old, key, manifest, self._old_schema):
                writer.write(batch)
            if is_table and not manifest.rows:
                writer.write_empty(key)
            files = tuple(writer.close().get(key, ()))
        except BaseException:
            writer.abort()
            raise
        return manifest, files

    def _rows(self, folder: FeedFolder, key: str, manifest: Manifest, schema: str | None) -> Iterator[pa.RecordBatch]:
        """Rows of one of the forms, in the new form's columns."""
        wanted = schema_from_json(self._conversion.schema or "")
        dataset = committed_files(folder, [key], schema, lambda _: [manifest])
        for batch in dataset.scanner(columns=wanted.names, batch_readahead=4, fragment_readahead=2).to_batches():
            try:
                yield from conform_table(pa.Table.from_batches([batch]), wanted).to_batches()
            except pa.ArrowInvalid as error:
                reason = " ".join(str(error).split())
                lost = f"partition {key} has a value that would be lost: {reason}"
                raise _Unfit(f"feed {self._feed.name!r} cannot be converted: {lost}; it is as before") from error

    def _writer(self, folder: FeedFolder, schema: pa.Schema, key: str, manifest: Manifest) -> RollingWriter[StagedFile]:
        written, at = self._feed.format, self._store.now()
        prefix = "snapshot" if self._feed.kind is FeedKind.TABLE else "data"
        footer = {
            "datalake.feed": self._feed.name,
            "datalake.commit_id": f"{self._conversion.id}-{key}",
            "datalake.run_id": "",
            "datalake.position": json.dumps(manifest.position.to_json() if manifest.position else {}),
        }
        return RollingWriter(
            schema,
            ParquetSettings(
                compression=written.compression,
                profile=written.profile,
                target_file_bytes=written.target_file_size_bytes,
                row_group_bytes=written.row_group_bytes,
            ),
            open_file=lambda of: folder.data_store.stage(
                f"{folder.data_folder(of)}/{data_file_name(prefix, at, folder.new_id())}"
            ),
            discard=folder.data_store.discard_staged,
            partition_of=key,
            time_column=self._feed.row_time,
            part_of=folder.part_of(),
            metadata=lambda _: footer,
        )

    def _compared(self, key: str) -> int:
        """Reads a partition of both forms, and compares how many rows there are, and which.

        Raises:
            CommitConflict: They are others: somebody wrote to the old form after it was copied.
        """
        rows, digest = self._again(key, lambda manifest: self._digest(self._old, key, manifest, self._old_schema))
        now = self.manifest(self._new, key)
        if (rows, digest) != self._digest(self._new, key, now, self._conversion.schema):
            raise _others(self._feed, f"rows of {key} were added or deleted meanwhile")
        return rows

    def _digest(self, folder: FeedFolder, key: str, manifest: Manifest, schema: str | None) -> tuple[int, int]:
        if not manifest.files:
            return 0, 0
        rows, total = 0, np.uint64(0)
        for batch in self._rows(folder, key, manifest, schema):
            rows += batch.num_rows
            with np.errstate(over="ignore"):
                total += row_hashes(batch).sum(dtype=np.uint64)
        if rows != manifest.rows:
            raise CorruptLake(folder.data_folder(key), f"{rows} rows, {manifest.rows} were committed")
        return rows, int(total)

    def _check_no_others(self, keys: Sequence[str]) -> None:
        """Sees to it that neither form has partitions that the other has not."""
        if self._keys() != tuple(keys):
            raise _others(self._feed, "partitions were added meanwhile")
        more = set(self._new.partition_keys()) - set(keys)
        if any(self.manifest(self._new, key).files for key in more):
            raise _others(self._feed, f"the new form has a partition {min(more)} that the feed has not")

    def _decide(self) -> None:
        """Ends the conversion: from now on the new form is written, whoever changes the document."""
        form = form_of(self._target)

        def rule(now: FeedState) -> FeedState:
            if now.conversion is None or now.conversion.id != self._conversion.id or now.conversion.is_given_up:
                return now
            return replace(now, form=form, conversion=None, schema=self._conversion.schema or now.schema)

        if self._log.change(rule).form != form:
            raise _others(self._feed, "the conversion was given up by somebody else")


def _is_there(manifest: Manifest, commit_id: str) -> bool:
    return bool(manifest.files) or manifest.committed_already(commit_id)


def _others(feed: Feed, reason: str, *, cure: str = "") -> CommitConflict:
    return CommitConflict(feed.path, f"not converted: {reason}", cure=cure or "nothing was changed; run it again")

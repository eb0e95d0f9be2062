"""A second form of a feed's files: for each Parquet file that is committed an Avro file of the same rows.

What there is to be follows from the manifests alone: an Avro file for each file that a manifest names, under its name,
in a folder beside the lake's. An export writes both of one parse, and makes the Avro files visible once its commit is
made. What was missed, after a kill or by a compaction, is made from Parquet, and what no manifest names is deleted: the
folder is listed first and the manifest read then, and both again until nothing differs, so that no writer deletes what
another one has just committed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from datalake_assets.core.files import DataFile
from datalake_assets.errors import CorruptLake, InvalidFeed, LakeError, ObjectNotFound, UploadGone
from datalake_assets.feed import Feed
from datalake_assets.lake.layout import FeedFolder, avro_folder
from datalake_assets.lake.store.base import StagedFile, StagedWriter
from datalake_assets.lake.table import Difference

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["AvroTwin", "AvroTwins", "check_twins", "follow_manifests", "twin_differences"]

SUFFIX = ".avro"
#: Times that a folder is compared with its manifest; other writers change both meanwhile.
ATTEMPTS = 20


def check_twins(feed: Feed, schema: pa.Schema) -> None:
    """Refuses rows that cannot be written as Avro, before any of them is landed.

    Raises:
        InvalidFeed: A column has a type that is not written.
    """
    from datalake_assets.parquet.avro_writer import avro_schema  # noqa: PLC0415  see `_made`

    try:
        avro_schema(schema)
    except ValueError as error:
        raise InvalidFeed(feed.name, f"format.also: {error}; leave 'avro' out, or land the column as text") from error


class AvroTwin:
    """One file that is being written beside another.

    Args:
        sink: Takes its bytes.
        schema: Of its rows.
        twins: Take what it has become.
        key: The partition.
    """

    def __init__(self, sink: StagedWriter, schema: pa.Schema, twins: AvroTwins, key: str) -> None:
        from datalake_assets.parquet.avro_writer import AvroFileWriter  # noqa: PLC0415  see `_made`

        self._sink, self._twins, self._key = sink, twins, key
        self._writer = AvroFileWriter(sink, schema)

    def write(self, rows: pa.RecordBatch) -> None:
        """Appends rows."""
        self._writer.write(rows)

    def finish(self) -> None:
        """Ends it: it is durable, and nobody sees it."""
        self._twins.staged[self._key].append(self._sink.finish())

    def discard(self) -> None:
        """Gives it up."""
        self._sink.discard()


class AvroTwins:
    """The Avro files of one export.

    Args:
        folder: The feed's corner of the lake.
        schema: Of the rows.

    Attributes:
        staged: Files that were written and are not visible, by partition key.
    """

    def __init__(self, folder: FeedFolder, schema: pa.Schema) -> None:
        self._folder, self._schema = folder, schema
        self.staged: dict[str, list[StagedFile]] = defaultdict(list)

    def begin(self, key: str, name: str) -> AvroTwin:
        """Begins the file beside a Parquet file of this name."""
        return AvroTwin(self._folder.store.stage(_key(self._folder, key, name)), self._schema, self, key)

    def publish(self, key: str, files: Iterable[DataFile]) -> None:
        """Makes files of a partition visible that a commit has made; one that is missed is made from Parquet later.

        Args:
            key: The partition.
            files: What its manifest names by now. Others were written, too, where nothing had to be committed.
        """
        named = {_key(self._folder, key, file.name) for file in files}
        for staged in self.staged.pop(key, ()):
            if staged.key in named:
                _publish(self._folder, staged)
            else:
                self._folder.store.discard_staged(staged)

    def discard(self) -> None:
        """Gives up what is not visible."""
        for files in self.staged.values():
            for each in files:
                self._folder.store.discard_staged(each)
        self.staged.clear()


def _place(folder: FeedFolder, key: str) -> str:
    return f"{avro_folder(folder.feed)}/{folder.partition_path(key)}".rstrip("/")


def _key(folder: FeedFolder, key: str, name: str) -> str:
    return f"{_place(folder, key)}/{name.removesuffix('.parquet')}{SUFFIX}"


def follow_manifests(folder: FeedFolder, keys: Iterable[str] | None = None) -> int:
    """Makes Avro files what manifests say, of some partitions or of all; idempotent.

    Of a feed that is written as Avro no longer all go: nobody would take rows out of them that are deleted.

    Returns:
        How many files that no manifest names were deleted.

    Raises:
        LakeError: The store failed, or a file cannot be read; a repetition does the rest.
    """
    if not folder.feed.format.also:
        places = [avro_folder(folder.feed)] if keys is None else [_place(folder, key) for key in keys]
        left = [info.key for place in places for info in folder.store.list(place)]
        folder.store.delete(left)
        return len(left)
    if keys is None:
        found = {info.key.rpartition("/")[0] for info in folder.store.list(avro_folder(folder.feed))}
        keys = dict.fromkeys(folder.partition_keys())
        known = {_place(folder, key) for key in keys}
        orphans = [info.key for place in found - known for info in folder.store.list(place)]
        folder.store.delete(orphans)
        return len(orphans) + sum(_follow(folder, key) for key in keys)
    return sum(_follow(folder, key) for key in dict.fromkeys(keys))


def _follow(folder: FeedFolder, key: str) -> int:
    deleted = 0
    for _ in range(ATTEMPTS):
        missing, unknown = _compared(folder, key)
        folder.store.delete(unknown)
        deleted += len(unknown)
        made = [file for file in missing if _made(folder, key, file)]
        if not unknown and len(made) == len(missing) == 0:
            return deleted
    raise LakeError(_place(folder, key), "other writers kept changing it", cure="run 'datalake repair' later")


def _compared(folder: FeedFolder, key: str) -> tuple[list[DataFile], list[str]]:
    """The files of the manifest without an Avro file, and Avro files without one of the manifest."""
    place = _place(folder, key)
    there = {info.key for info in folder.store.list(place) if info.key.rpartition("/")[0] == place}
    log = folder.log(key)
    wanted = {_key(folder, key, file.name): file for file in log.settle(log.load()).manifest.files}
    return [file for name, file in wanted.items() if name not in there], sorted(there - wanted.keys())


def _made(folder: FeedFolder, key: str, file: DataFile) -> bool:
    """Makes an Avro file from Parquet; not of a file that has been replaced meanwhile."""
    # what looks at a lake looks for Avro files, too, and need not load Arrow if none is to be made
    import pyarrow as pa  # noqa: PLC0415

    from datalake_assets.core.schema import schema_from_json  # noqa: PLC0415
    from datalake_assets.parquet.avro_writer import AvroFileWriter  # noqa: PLC0415
    from datalake_assets.parquet.decoding import open_parquet, tables  # noqa: PLC0415
    from datalake_assets.parquet.failed_requests import answered  # noqa: PLC0415
    from datalake_assets.parquet.schemas import conform_table  # noqa: PLC0415

    state = folder.state.load()
    if state.schema is None:
        raise AssertionError
    schema = schema_from_json(state.schema).remove_metadata()
    store, at = folder.data_store, folder.file_key(key, file.name)
    with folder.store.stage(_key(folder, key, file.name)) as sink:
        writer, rows = AvroFileWriter(sink, schema), 0
        try:
            with answered(at), store.filesystem().open_input_file(store.path(at)) as source:
                for table in tables(open_parquet(source)):
                    rows += table.num_rows
                    for batch in conform_table(table, schema).combine_chunks().to_batches():
                        writer.write(batch)
        except (pa.ArrowException, OSError, ObjectNotFound) as error:
            if store.head(at) is None:
                return False
            raise CorruptLake(at, f"cannot be read: {str(error).splitlines()[0]}") from error
        if rows != file.rows:
            raise CorruptLake(at, f"{rows} rows, {file.rows} were committed")
        staged = sink.finish()
    _publish(folder, staged)
    return True


def _publish(folder: FeedFolder, staged: StagedFile) -> None:
    """Makes a file visible, unless another writer has made it: a name stands for the rows of one file."""
    try:
        folder.store.publish(staged)
    except UploadGone:
        return
    except CorruptLake:
        if folder.store.head(staged.key) is None:
            raise
        folder.store.discard_staged(staged)


def twin_differences(folder: FeedFolder, keys: Iterable[str] | None = None) -> Iterator[Difference]:
    """Avro files that are missing, or that no manifest names; of all partitions, those of a feed without Avro, too."""
    if not folder.feed.format.also:
        if keys is None:  # of one partition it would be a request for nothing, in nearly every feed
            for info in folder.store.list(avro_folder(folder.feed)):
                yield Difference("", "unknown file", info.key, _NO_LONGER)
        return
    for key in folder.partition_keys() if keys is None else keys:
        missing, unknown = _compared(folder, key)
        for file in missing:
            yield Difference(key, "missing", _key(folder, key, file.name), "'datalake repair' makes it from Parquet")
        for name in unknown:
            yield Difference(
                key, "unknown file", name, "no file of this name was committed; 'datalake repair' deletes it"
            )


_NO_LONGER = "the feed is written as Avro no longer; 'datalake repair' deletes it"

"""A lake with one day of one stream in many files, landed through the product's own commit; a process of its own.

``python -m benchmarks.compaction_lakes LAKE FILES ROWS`` builds it in a folder or, with the environment of a server, in
a bucket. What a benchmark changes is not this lake but a clone of it. With a fourth argument, a number of templates, it
is built of files that differ from a template in their ids and times, without a commit for each.

What makes files is imported where they are made: who opens the lake is measured, with all that it imports.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from datalake_assets.core.files import DataFile, data_file_name
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.position import OffsetsPosition
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind
from datalake_assets.lake.commit import Change, Planned
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import StagedFile, Store
from datalake_assets.lake.store.s3_access import S3Access
from datalake_assets.parquet.sinks import new_checksum
from datalake_assets.policies import CompactionPolicy, ParquetFormat
from datalake_assets.settings import load_settings
from datalake_assets.sources.ksqldb.declaration import KsqlDBSource

if TYPE_CHECKING:
    import pyarrow as pa

    from benchmarks.compaction_inputs import InputFile

__all__ = ["KEY", "build", "build_from_templates", "build_of_files", "feed_of", "open_lake"]

#: Partition key of the day, which is that of `benchmarks.compaction_inputs`.
KEY = "2025-01-15"
#: Files that are made and staged at once.
THREADS = 4
#: Files of one commit.
PER_COMMIT = 1_000

T = TypeVar("T")
U = TypeVar("U")


def open_lake(uri: str) -> Store:
    """The lake; in a bucket, found by the environment."""
    return open_store(uri, s3=S3Access(endpoint=load_settings().s3_endpoint))


def feed_of(policy: CompactionPolicy | None = None, written: ParquetFormat | None = None) -> Feed:
    """The stream, with the settings that matter to its compaction."""
    return Feed(
        name="events",
        kind=FeedKind.STREAM,
        source=KsqlDBSource(object="EVENTS"),
        time_column="event_time",
        format=written or ParquetFormat(),
        compaction=policy or CompactionPolicy(),
    )


def build(store: Store, *, files: int, rows: int) -> None:
    """Lands so many files of so many rows each."""
    from benchmarks.compaction_inputs import SCHEMA, make_file  # noqa: PLC0415  see the module
    from datalake_assets.core.schema import schema_to_json  # noqa: PLC0415

    folder = FeedFolder(store, feed_of())
    schema = schema_to_json(SCHEMA)
    folder.state.change(lambda now: replace(now.with_kind("offsets", feed=folder.feed.name), schema=schema))
    made = partial(make_file, rows=rows, files=files)
    numbers = iter(range(files))
    while some := list(islice(numbers, PER_COMMIT)):
        staged = tuple(_in_threads(lambda number: _stage(folder, made(number)), some))
        change = Change(folder.new_id(), "append", staged, _plan((some[-1] + 1) * rows, schema))
        folder.log(KEY).commit(change)


def build_from_templates(store: Store, *, files: int, rows: int, templates: int) -> None:
    """Lands so many files, made of so many templates, without a commit for each."""
    from benchmarks.compaction_inputs import SCHEMA, Template  # noqa: PLC0415  see the module

    made = [Template(number, rows) for number in range(templates)]
    build_of_files(store, (made[number % templates].make(number) for number in range(files)), schema=SCHEMA)


def build_of_files(store: Store, files: Iterable[InputFile], *, schema: pa.Schema) -> None:
    """Puts files where they belong, and into the manifest, which takes a hundred thousand in one write."""
    from datalake_assets.core.schema import schema_to_json  # noqa: PLC0415  see the module

    folder = FeedFolder(store, feed_of())
    columns = schema_to_json(schema)
    folder.state.change(lambda now: replace(now.with_kind("offsets", feed=folder.feed.name), schema=columns))
    target, is_local = Path(store.path(folder.data_folder(KEY))), "://" not in store.uri
    if is_local:
        target.mkdir(parents=True)

    def put(file: InputFile) -> DataFile:
        name = data_file_name("data", file.min_time, folder.new_id())
        if is_local:
            (target / name).write_bytes(file.body)
        else:
            store.put(folder.file_key(KEY, name), file.body)
        checksum = new_checksum()
        checksum.update(file.body)
        return DataFile(name, file.rows, len(file.body), file.min_time, file.max_time, str(checksum))

    listed = [*(map(put, files) if is_local else _in_threads(put, files))]
    log = folder.log(KEY)
    log.reconcile(log.load(), listed, schema=columns)


def _stage(folder: FeedFolder, file: InputFile) -> tuple[StagedFile, DataFile]:
    name = data_file_name("data", file.min_time, folder.new_id())
    with folder.store.stage(f"{folder.data_folder(KEY)}/{name}") as writer:
        writer.write(file.body)
        staged = writer.finish()
    checksum = new_checksum()
    checksum.update(file.body)
    return staged, DataFile(name, file.rows, len(file.body), file.min_time, file.max_time, str(checksum))


def _plan(end: int, schema: str) -> Callable[[Manifest], Planned]:
    def plan(_: Manifest) -> Planned:
        return Planned(position=OffsetsPosition({0: (0, end)}), schema=schema)

    return plan


def _in_threads(work: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """Results in order, never many more at once than there are threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        remaining = iter(items)
        waiting = [pool.submit(work, item) for item in islice(remaining, 2 * THREADS)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(work, item) for item in islice(remaining, 1)]


def main(uri: str, files: int, rows: int, templates: int = 0) -> None:
    """Builds the lake, and prints its rows."""
    store = open_lake(uri)
    if templates:
        build_from_templates(store, files=files, rows=rows, templates=templates)
    else:
        build(store, files=files, rows=rows)
    FeedRegistry(store).add(feed_of())
    print(files * rows)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

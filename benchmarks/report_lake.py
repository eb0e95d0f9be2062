"""A lake for the benchmark of the report: manifests by the thousand, without the files that they speak of.

A partition got thirteen files, of one export each; in half of the partitions they were compacted half way. That makes
some ten files each. The manifests are what the commits of the product make; only the objects are written by hand, since
ten thousand partitions would take minutes of fsync.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from datalake_assets.core.files import DataFile, data_file_name
from datalake_assets.core.manifest import Manifest, Pending, Publish
from datalake_assets.core.partitions import PartitionBy, TimeWindow, keys_in, path_of
from datalake_assets.feed import Feed, parse_feed

__all__ = ["write_lake"]

START = datetime(2025, 1, 1, tzinfo=UTC)
EXPORTS = 13
SCHEMA = "A" * 800  # about what the schema of a dozen columns takes


def write_lake(folder: Path, *, partitions: int, feeds: int = 10) -> int:
    """Writes a lake of so many partitions, spread over feeds; hourly ones since 2025. Returns how many files it has."""
    files = 0
    for number in range(feeds):
        feed = _feed(f"feed_{number:02}")
        _write(folder / f"feeds/active/{feed.name}.json", feed.model_dump_json().encode())
        end = START + timedelta(hours=partitions // feeds)
        for key in keys_in(TimeWindow(START, end), PartitionBy.HOUR):
            manifest = _manifest(key, random.Random(f"{number} {key}"))
            path = f"control/{feed.path}/{path_of(key, PartitionBy.HOUR)}/manifest.json"
            _write(folder / path, manifest.to_bytes())
            files += len(manifest.files)
    return files


def _feed(name: str) -> Feed:
    return parse_feed(
        json.dumps(
            {
                "name": name,
                "kind": "stream",
                "source": {"type": "ksqldb", "object": name.upper()},
                "partition_by": "hour",
                "start": "2025-01-01",
                "freshness": {"max_event_age": "P1D"},
            }
        )
    )


def _write(file: Path, body: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(body)


def _manifest(key: str, chance: random.Random) -> Manifest:
    began = datetime.strptime(key, "%Y-%m-%d-%H:%M").replace(tzinfo=UTC)
    manifest = Manifest(schema=SCHEMA)
    for number, file in enumerate(_files(began, chance)):
        at = began + timedelta(minutes=4 * (number + 1))
        manifest = _commit(manifest, file, at=at, kind="append")
        if number == EXPORTS // 2 and chance.random() < 0.5:
            manifest = _commit(manifest, _merged(manifest, at), at=at, kind="compact")
    return manifest.stamped("0123456789abcdef")


def _files(began: datetime, chance: random.Random) -> Iterator[DataFile]:
    for number in range(EXPORTS):
        first = began + timedelta(minutes=4 * number)
        size = int(chance.lognormvariate(15, 1.5))
        yield DataFile(
            name=data_file_name("data", first, f"{chance.getrandbits(64):016x}"),
            rows=size // 100 + 1,
            size_bytes=size,
            min_time=first,
            max_time=first + timedelta(minutes=4),
            checksum=f"xxh3-128:{chance.getrandbits(128):032x}",
            etag=f"{size}-{int(first.timestamp())}000000000-{chance.getrandbits(20)}",
        )


def _merged(manifest: Manifest, at: datetime) -> DataFile:
    files = manifest.files
    return msgspec.structs.replace(
        files[0],
        name=data_file_name("compacted", at, files[0].name[-24:-8]),
        rows=manifest.rows,
        size_bytes=sum(file.size_bytes for file in files),
        max_time=files[-1].max_time,
    )


def _commit(manifest: Manifest, file: DataFile, *, at: datetime, kind: str) -> Manifest:
    pending = Pending(
        commit_id=f"{manifest.generation:016x}",
        kind=kind,
        run_id="3f1c2f6e-1f5e-4d0e-9a55-0c3c5f6f3b21",
        publish=(Publish(file, "token"),),
        remove=tuple(each.name for each in manifest.files) if kind == "compact" else (),
    )
    return manifest.prepared(pending).committed([file], at=at, small_file_bytes=64 << 20).swept()

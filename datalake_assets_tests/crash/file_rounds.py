"""Rounds of dropped files: files come, change, change back and are touched while exports of them are killed.

Some records are none for the feed as it is exported, and wait in quarantine. Replays of them, under a feed that takes
them, are killed, too. What stands in the end is read by pyarrow from the plain files, and by fastavro from those beside
them, and compared with what Python's csv module reads of the files that lie in the folder by then: no code of the
product takes part in it.
"""

from __future__ import annotations

import csv
import json
import os
import random
from collections import Counter
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import fastavro
import pyarrow.parquet as pq

from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import load_settings
from datalake_assets.sources.base import DecodesItems
from datalake_assets.sources.systems import connect
from datalake_assets_tests.crash.checks import CrashError
from datalake_assets_tests.crash.child import Forker
from datalake_assets_tests.crash.killing import KILLED, die_at

__all__ = ["FileRounds", "land_files"]

#: What changes the lake, and how many times an export of some files over three months does it.
OPERATIONS: dict[str, int] = {"stage": 18, "create": 4, "swap": 14, "put": 9, "publish": 18, "delete": 12}
#: Rounds between two looks, and rows of a file.
LOOK_EVERY, ROWS = 5, 6
#: One record of so many is put aside.
BAD_EVERY = 5
COLUMNS = ["file", "edition", "row", "amount", "source_file"]
WORKERS = 2
MOST_FAILED = 20


def feed_of(folder: str, *, is_mended: bool = False) -> Feed:
    """A stream of files by the time of their rows, over three months; one that is mended takes ``-`` for null."""
    columns = {"at": "timestamptz", "amount": "int64"}
    source = {"type": "files", "location": folder, "min_age_s": 0, "max_files": 3, "columns": columns}
    source |= {"null_values": ["-"]} if is_mended else {}
    document = {"name": "dropped", "kind": "stream", "source": source, "time_column": "at", "partition_by": "month"}
    return parse_feed(json.dumps({**document, "format": {"type": "parquet", "also": ["avro"]}}))


def land_files(*, lake: str, folder: str, what: str, name: str, number: int, moment: str) -> None:
    """A process that exports, replays or repairs, and dies before or after its ``number``-th ``name``; 0 for never."""
    if name:
        die_at(LocalStore, name, number=number, moment=moment)
    table = open_table(open_store(lake), feed_of(folder, is_mended=what == "replay"))
    if what == "repair":
        table.repair()
        return
    plan = table.plan()
    with connect("files", load_settings()) as source:
        if what == "replay":
            decode = partial(source.decode_items, table.feed) if isinstance(source, DecodesItems) else None
            table.replay(source.read(table.feed, plan.request), None, decode_items=decode)
            return
        table.write(source.read(table.feed, plan.request), partitions=plan.partitions, run_id=f"export {os.getpid()}")


class FileRounds:
    """Drops, kills and counts; the interface of the campaign's other rounds.

    Args:
        lakes: A folder.
        forker: Starts the exports.
        seed: Of what is drawn.
    """

    #: Those of which enough are killed in a full campaign; objects are made anew only at first.
    steps = tuple(name for name in OPERATIONS if name != "create")

    def __init__(self, lakes: str, forker: Forker, *, seed: int = 0, endpoint: str | None = None) -> None:
        assert endpoint is None, "the campaign of files works on a local lake"
        self._lake, self._folder = f"{lakes}/files", Path(f"{lakes}/drop")
        self._forker, self._rng = forker, random.Random(seed)
        self.hits: Counter[str] = Counter()
        self.moments: Counter[str] = Counter()
        self.happened: Counter[str] = Counter()
        self._versions: dict[str, list[int]] = {}
        self._clock, self._rounds = datetime(2026, 1, 1, tzinfo=UTC).timestamp(), 0

    def prepare(self) -> None:
        """Makes the folder and the lake."""
        Path(self._lake).mkdir()
        self._folder.mkdir()
        for _ in range(5):
            self._drop_new()

    def round(self) -> str:
        """Files change, two exports at once are killed, and files change meanwhile."""
        self._rounds += 1
        for _ in range(self._rng.randint(1, 4)):
            self._change()
        points = [self._point() for _ in range(WORKERS)]
        whats = [self._rng.choice(("export", "export", "replay")) for _ in points]
        children = [self._start(what, *point) for what, point in zip(whats, points, strict=True)]
        if self._rng.random() < 0.5:
            self._change()
        for child, what, (name, _, moment) in zip(children, whats, points, strict=True):
            code = self._forker.wait(child)
            if code == KILLED:
                self.happened[f"{what} killed"] += 1
                self.hits[name] += 1
                self.moments[moment] += 1
            elif code:  # a file changed while it was read, or another export landed it, again and again
                self.happened["failed"] += 1
                assert self.happened["failed"] < MOST_FAILED * (1 + self._rounds / 50), "exports fail"
        if self._rounds % LOOK_EVERY == 0:
            self._finish()
        return f"{self.hits.total()} killed, {len(self._versions)} files"

    def _change(self) -> None:
        drawn = self._rng.random()
        if drawn < 0.3 or not self._versions:
            self._drop_new()
            return
        name = self._rng.choice(list(self._versions))
        versions = self._versions[name]
        if drawn < 0.6:
            self._write(name, max(versions) + 1, "changed")
        elif drawn < 0.8:
            self._write(name, self._rng.choice(versions), "changed back")
        elif drawn < 0.9:
            self._write(name, versions[-1], "touched")
        else:
            self._write(name, versions[-1], "bad", body=b"")

    def _drop_new(self) -> None:
        self._write(f"{self._rng.randrange(1 << 30):x}/{len(self._versions)}.csv", 1, "new")

    def _write(self, name: str, version: int, what: str, *, body: bytes | None = None) -> None:
        """Makes a content of a file visible at once, later than all before it."""
        if body is None:
            self._versions.setdefault(name, []).append(version)
            rows = [
                f"{name},{version},{row},{_at(version, row)},{'-' if row % BAD_EVERY == 1 else row}"
                for row in range(ROWS + version % 3)
            ]
            body = "\n".join(["file,edition,row,at,amount", *rows, ""]).encode()
        self._clock += 1
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f".{path.name}")
        part.write_bytes(body)
        os.utime(part, (self._clock, self._clock))
        part.rename(path)
        self.happened[what] += 1

    def _point(self) -> tuple[str, int, str]:
        name, most = self._rng.choice(list(OPERATIONS.items()))
        return name, self._rng.randint(1, most), self._rng.choice(("before", "after"))

    def _start(self, what: str, name: str = "", number: int = 0, moment: str = "") -> int:
        told = {"what": what, "name": name, "number": number, "moment": moment}
        return self._forker.start("land_files", lake=self._lake, folder=str(self._folder), **told)

    def close(self) -> None:
        """Lands the rest, and compares what stands with what lies in the folder.

        Raises:
            CrashError: A row is missing, there twice, or of a former content.
        """
        self._finish()

    def _finish(self) -> None:
        for name, versions in self._versions.items():  # a file that was bad is good again
            if not (self._folder / name).stat().st_size:
                self._write(name, versions[-1], "mended")
        for what in ("export", "replay", "repair"):
            assert self._forker.wait(self._start(what)) == 0, f"an {what} that nobody kills fails"
        files = Path(self._lake, "streams", "dropped").rglob("*.parquet")
        landed: Counter[tuple[str, ...]] = Counter()
        for file in files:
            table = pq.read_table(file, columns=COLUMNS, partitioning=None)
            landed.update(zip(*(map(str, column.to_pylist()) for column in table.columns), strict=True))
        expected: Counter[tuple[str, ...]] = Counter()
        for name in self._versions:
            with (self._folder / name).open(newline="") as text:
                expected.update(
                    (
                        row["file"],
                        row["edition"],
                        row["row"],
                        str(None if row["amount"] == "-" else row["amount"]),
                        name,
                    )
                    for row in csv.DictReader(text)
                )
        for form, found in (("Parquet", landed), ("Avro", self._avro())):
            if found != expected:
                lost, more = list((expected - found).items())[:5], list((found - expected).items())[:5]
                raise CrashError(f"rows in {form}: lost {lost}, more {more}")
        self.happened["compared"] += 1
        self.happened |= Counter(rows=landed.total(), files=len(self._versions))

    def _avro(self) -> Counter[tuple[str, ...]]:
        found: Counter[tuple[str, ...]] = Counter()
        for file in Path(self._lake, "avro", "streams", "dropped").rglob("*.avro"):
            with file.open("rb") as opened:
                found.update(tuple(str(row[name]) for name in COLUMNS) for row in fastavro.reader(opened))
        return found


def _at(version: int, row: int) -> str:
    """Rows are in other months in each content."""
    return f"2026-{1 + (version + row // 3) % 3:02}-{1 + row:02}T00:00:00Z"

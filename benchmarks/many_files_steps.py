"""Steps of `benchmarks.many_files`, each a process of its own: a folder is made, adopted, looked at, planned, merged.

``python -m benchmarks.many_files_steps STEP FOLDER [FILES PARTITIONS]`` prints what the step used, and what it found. A
file is a template in which its own number and time are put, in pages and statistics alike: so no two are alike, and a
hundred thousand are made in seconds. Parquet is read here by pyarrow alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.measuring import Stopwatch

if TYPE_CHECKING:
    from datalake_assets.lake.store.local import LocalStore
    from datalake_assets.lake.table import LakeTable

__all__ = ["main"]

#: Rows of a file; each has the file's number and time.
ROWS = 20
#: Of the template: eight bytes that occur in nothing else of it.
NUMBER, TIME = 0x5AD17E3B9C2F6471, 0x16A5D94C83E2B7F1
#: Of the first file's rows, in microseconds since 1970; each file is a second later.
FIRST_US = int(datetime(2025, 1, 15, tzinfo=UTC).timestamp()) * 1_000_000
FEED = "many"


def make(root: Path, files: int, partitions: int) -> Mapping[str, object]:
    """Makes the folder: one flat, or so many Hive partitions."""
    body, places = _template()
    for partition in range(partitions):
        (root / "folder" / _partition(partition, partitions)).mkdir(parents=True)
    for number in range(files):
        folder = root / "folder" / _partition(number % partitions, partitions)
        time = FIRST_US + number * 1_000_000
        for value, where in ((number, places[NUMBER]), (time, places[TIME])):
            for offset in where:
                body[offset : offset + 8] = value.to_bytes(8, "little")
        with open(f"{folder}/part-{number:08}.parquet", "wb") as sink:  # noqa: PTH123  hundreds of thousands
            sink.write(body)
    return {"file_bytes": len(body)}


def _partition(number: int, partitions: int) -> str:
    return "" if partitions == 1 else f"shop={number:05}"


def _template() -> tuple[bytearray, Mapping[int, list[int]]]:
    import pyarrow as pa  # noqa: PLC0415  what is measured begins without
    import pyarrow.parquet as pq  # noqa: PLC0415

    table = pa.table(
        {
            "file": pa.array([NUMBER] * ROWS, pa.int64()),
            "event_time": pa.array([TIME] * ROWS, pa.int64()).cast(pa.timestamp("us")),
            "row": pa.array(range(ROWS), pa.int32()),
            "note": pa.array([f"note {row}" for row in range(ROWS)]),
        }
    )
    sink = BytesIO()
    pq.write_table(table, sink, compression="none", use_dictionary=False, store_schema=False)
    body = bytearray(sink.getvalue())
    return body, {marker: _places(body, marker.to_bytes(8, "little")) for marker in (NUMBER, TIME)}


def _places(body: bytes | bytearray, marker: bytes) -> list[int]:
    found, at = [], body.find(marker)
    while at >= 0:
        found.append(at)
        at = body.find(marker, at + 1)
    return found


def adopt(root: Path) -> Mapping[str, object]:
    """Adopts the folder."""
    from datalake_assets.lake.adopted import adoption  # noqa: PLC0415  one step needs it

    lake = _lake(root)
    watch = Stopwatch()
    found = adoption.adopt(lake, str(root / "folder"), FEED, time_column="event_time").found
    return _told(watch, files=found.added, partitions=len(found.partitions), problems=len(found.problems))


def look(root: Path) -> Mapping[str, object]:
    """Looks again at what did not change."""
    table = _table(root)
    watch = Stopwatch()
    found = table.look_again()
    return _told(watch, changed=len(found.changed), partitions=len(found.partitions), footers=found.footers_read)


def plan(root: Path) -> Mapping[str, object]:
    """Plans the compaction of every partition."""
    from datalake_assets.core.compaction.plan import CompactionRequest  # noqa: PLC0415

    table = _table(root)
    watch = Stopwatch()
    plans = [table.compaction_plan(key, CompactionRequest()) for key in table.partitions()]
    return _told(watch, groups=sum(len(each.groups) for each in plans))


def verify(root: Path) -> Mapping[str, object]:
    """Compares the manifests with what is there."""
    table = _table(root)
    watch = Stopwatch()
    differences = len(list(table.verify()))
    return _told(watch, differences=differences)


def compact(root: Path) -> Mapping[str, object]:
    """Looks at the folder and merges what a plan says, as ``datalake compact`` does."""
    from datalake_assets.core.compaction.plan import CompactionRequest  # noqa: PLC0415
    from datalake_assets.lake.feed_compaction import compact_partition, most_small_files_first  # noqa: PLC0415

    table = _table(root)
    watch = Stopwatch()
    known = table.look_again().partitions
    keys = most_small_files_first(lambda: table, list(known), known=known)
    request = CompactionRequest(max_files=sum(each.files for each in known.values()))
    done = [compact_partition(table, key, request) for key in keys]
    reports = [each.report for each in done if each.report is not None]
    errors = [str(each.error) for each in done if each.error is not None]
    after = sum(each.files_after for each in reports)
    return _told(watch, merged=sum(each.files_compacted for each in reports), after=after, errors=errors[:3])


def check(root: Path) -> Mapping[str, object]:
    """Reads all files that are there with pyarrow: every row of every file, once."""
    import numpy as np  # noqa: PLC0415
    import pyarrow.dataset as ds  # noqa: PLC0415

    seen: Callable[..., object] = lambda: ds.dataset(root / "folder", format="parquet")  # noqa: E731
    table = seen().to_table(columns=["file", "event_time", "row", "note"])  # type: ignore[attr-defined]
    numbers, rows = table["file"].to_numpy(), table["row"].to_numpy()
    times = table["event_time"].cast("int64").to_numpy()
    whole = np.array_equal(np.sort(numbers * ROWS + rows), np.arange(len(numbers)))
    right = bool((times == FIRST_US + numbers * 1_000_000).all())
    return {"rows": table.num_rows, "exact": whole and right}


def _told(watch: Stopwatch, **found: object) -> Mapping[str, object]:
    return {"used": asdict(watch.stop()), "found": found}


def _lake(root: Path) -> LocalStore:
    from datalake_assets.lake.store.local import LocalStore  # noqa: PLC0415

    (root / "lake").mkdir(exist_ok=True)
    return LocalStore(root / "lake")


def _table(root: Path) -> LakeTable:
    from datalake_assets.lake.registry import FeedRegistry  # noqa: PLC0415
    from datalake_assets.lake.tables import open_table  # noqa: PLC0415

    lake = _lake(root)
    return open_table(lake, FeedRegistry(lake).get(FEED))


STEPS: Mapping[str, Callable[..., Mapping[str, object]]] = {
    "make": make,
    "adopt": adopt,
    "look": look,
    "verify": verify,
    "plan": plan,
    "compact": compact,
    "check": check,
}


def main(step: str, root: str, *numbers: str) -> None:
    """Does one step."""
    print(json.dumps(STEPS[step](Path(root), *map(int, numbers))))


if __name__ == "__main__":
    main(*sys.argv[1:])

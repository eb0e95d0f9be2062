"""Lakes whose feeds are shown live, with a feed of rules, tiles and hostile names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from unittest import mock

import pyarrow as pa

from datalake_assets.core.batches import RejectedRow, SourceBatch
from datalake_assets.feed import Feed
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.watching import watched_by
from datalake_assets.live import questions
from datalake_assets.live.page_server import serving_live
from datalake_assets.live.window import LiveWindows
from datalake_assets_tests.lake.feeds import SCHEMA, stream_feed, stream_of
from datalake_assets_tests.lake.hive_tables import export

#: A text that is markup, a script, and no UTF-8 in places.
HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)>'\"&"
RULES: list[dict[str, object]] = [
    {"type": "range", "name": "small", "column": "id", "max": 1_000_000},
    {"type": "unique", "name": "once", "columns": ["note"], "limits": {"warn": 50}},
    {"type": "sql", "name": "no_sevens", "query": "SELECT * FROM data WHERE id % 10 = 7; -- a comment"},
]
TILES: list[dict[str, object]] = [
    {"name": "Rows", "sql": "SELECT count(*) FROM data", "kind": "number", "unit": "rows"},
    {
        "name": HOSTILE[:60],
        "sql": "SELECT date_trunc('minute', rowtime), count(*) FROM data GROUP BY 1",
        "kind": "series",
    },
    {"name": "Notes", "sql": "SELECT note, id FROM data ORDER BY id DESC LIMIT 3"},
    {"name": "Late", "sql": "SELECT count(*) FROM data WHERE _late", "kind": "number", "history": "PT0S"},
]


def live_feed(**changes: object) -> Feed:
    """A stream with rules and tiles, whose rows are of today."""
    start = (datetime.now(UTC) - timedelta(days=2)).date().isoformat()
    return stream_feed(
        **{"start": start, "checks": {"rules": RULES}, "tiles": TILES, "description": HOSTILE, **changes}
    )


@dataclass
class LiveLake:
    """A lake, and a page that shows its feed ``s``.

    Attributes:
        store: The lake.
        table: The feed's table.
        url: The page's.
        windows: What it shows.
        next_id: Of the next row.
    """

    store: Store
    table: HiveTable
    url: str
    windows: LiveWindows
    next_id: int = 0

    def land(self, count: int, *, note: str = "", age_s: float = 0.1, rejected: tuple[RejectedRow, ...] = ()) -> None:
        """Lands so many rows of now, as a pass that is watched."""
        ids = range(self.next_id, self.next_id + count)
        self.next_id += count + len(rejected)
        time = datetime.now(UTC) - timedelta(seconds=age_s)
        notes = pa.array([note or f"n{each}" for each in ids], pa.string())
        times = pa.array([time] * count, pa.timestamp("ms", "UTC"))
        rows = pa.record_batch([pa.array(ids, pa.int64()), notes, times], schema=SCHEMA)
        batch = SourceBatch(rows, pa.array([0] * count, pa.int32()), pa.array(ids, pa.int64()), rejected)
        with watched_by(self.windows):
            export(self.table, stream_of(batch))


@contextlib.contextmanager
def live_lake(folder: Path, *, port: int = 0, feed: Feed | None = None, window_s: float = 60) -> Iterator[LiveLake]:
    """A new lake, and its page, as long as the context is open.

    Questions of the window may take ``window_s`` seconds each: with the page's own one, a busy machine leaves some
    without an answer for half a minute.
    """
    folder.mkdir(exist_ok=True)
    store, found = open_store(str(folder)), feed or live_feed()
    registry = FeedRegistry(store)
    if not registry.list().feeds:
        registry.add(found)
    found = registry.get(found.name)
    urls: list[str] = []
    patient = mock.patch.object(questions, "WINDOW_S", window_s)
    with patient, serving_live(store, [found], port=port, announce=urls.append) as windows:
        table = HiveTable(store, found)
        first = dict(table.plan().request.start_offsets or {}).get(0, 0)
        yield LiveLake(store, table, urls[0], windows, int(first))

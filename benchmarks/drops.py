"""A look of the sensor at a prefix with many objects, ten of them new: requests and time, on the embedded S3 server.

The objects are made once, and entered into the ledger as landed; ten more come whose names follow all others, as those
of times do, and ten more with names of all places. Each time looks are made until all ten are found, by a process that
has looked before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import obstore
from obstore.store import S3Store

from benchmarks.measuring import Target, print_targets
from datalake_assets.core.batches import LandedItem
from datalake_assets.demo.s3_server import S3Server
from datalake_assets.feed import parse_feed
from datalake_assets.lake.item_ledger import ItemLedger
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store import open_store
from datalake_assets.settings import load_settings
from datalake_assets.sources.files.drop_watch import ROUND_OBJECTS
from datalake_assets.sources.systems import connect

__all__ = ["main"]

NEW = 10
#: Objects that are made at once: 1,500 a second on two cores, eight times what boto3 makes.
IN_FLIGHT = 32


def main(arguments: Sequence[str]) -> None:
    """Makes the objects, and prints what looks cost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks drops", description=__doc__)
    parser.add_argument(
        "--objects", type=int, default=1_000_000, help="objects under the prefix (default: %(default)s)"
    )
    chosen = parser.parse_args(arguments)
    with (
        tempfile.TemporaryDirectory(prefix="datalake-bench-") as folder,
        S3Server(Path(folder) / "s3") as server,
        patch.dict("os.environ", server.environment()),
    ):
        _measure(server, Path(folder) / "lake", chosen.objects)


def _measure(server: S3Server, lake: Path, count: int) -> None:
    lake.mkdir()
    began = time.perf_counter()
    _put(server, [f"{number:07}.csv" for number in range(count)])
    print(f"{count / (time.perf_counter() - began):,.0f} objects a second were made")
    said = {"type": "files", "location": f"s3://{server.bucket}/drop"}
    feed = parse_feed(json.dumps({"name": "s", "kind": "stream", "source": said}))
    ledger = ItemLedger(FeedFolder(open_store(str(lake)), feed))
    with connect("files", load_settings()) as connected:
        source: Any = connected  # of files
        place = source.place(feed)
        listed = [
            LandedItem(
                each.name, f"{each.name}#{each.version}", each.version, each.size_bytes, each.modified, 1, 0, 0.01
            )
            for each in place.list()
        ]
        ledger.end(dict.fromkeys(listed))
        fresh = ItemLedger(FeedFolder(open_store(str(lake)), feed))
        cursor = ""
        first = time.perf_counter()
        cursor = source.news(feed, fresh, cursor).cursor
        print(f"{count:,} objects; the first look, which reads the ledger: {time.perf_counter() - first:.2f} s")
        while json.loads(cursor)["rounds"] < 1:
            cursor = source.news(feed, fresh, cursor).cursor
        layouts = {
            "names that ascend, as times do": [f"{count + number:07}-new.csv" for number in range(NEW)],
            "names of all places": [f"{number * (count // (NEW - 1)):07}-new.csv" for number in range(NEW)],
        }
        for layout, names in layouts.items():
            print(f"{layout}:")
            _put(server, names)
            cursor = _looks(source, feed, fresh, cursor, names=set(names), place=place)


def _put(server: S3Server, names: Sequence[str]) -> None:
    said = server.environment()
    store = S3Store(
        server.bucket,
        endpoint=server.endpoint,
        access_key_id=said["AWS_ACCESS_KEY_ID"],
        secret_access_key=said["AWS_SECRET_ACCESS_KEY"],
        region=said["AWS_REGION"],
        client_options={"allow_http": True},
    )
    waiting = iter(names)

    async def put_rest() -> None:
        for name in waiting:
            await obstore.put_async(store, f"drop/{name}", b"id\n1\n")

    async def put_all() -> None:
        await asyncio.gather(*(put_rest() for _ in range(IN_FLIGHT)))

    asyncio.run(put_all())


def _looks(source: Any, feed: Any, ledger: ItemLedger, cursor: str, *, names: set[str], place: Any) -> str:
    found: set[str] = set()
    looks, worst, most = 0, 0.0, 0
    while not names <= found:
        before, began = sum(place.requests.values()), time.perf_counter()
        news = source.news(feed, ledger, cursor)
        took, requests = time.perf_counter() - began, sum(place.requests.values()) - before
        looks, worst, most, cursor = looks + 1, max(worst, took), max(most, requests), news.cursor
        found |= set(news.items)
    wanted = ROUND_OBJECTS // 1000 + 2
    print(f"{NEW} new files were found by {looks} looks; a look took {worst:.2f} s and {most} requests at the most")
    print_targets([Target("requests of a look", f"at most {wanted}", str(most), most <= wanted)])
    return cursor

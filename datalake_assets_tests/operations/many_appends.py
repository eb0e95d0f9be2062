"""Many appends, one compaction, one expiry: rows, files and snapshots as another engine sees them.

``python -m datalake_assets_tests.operations.many_appends --appends 500 --catalog rest``; the suite does with fewer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from datalake_assets.demo.s3_server import S3Server
from datalake_assets.operations import Operations
from datalake_assets_tests.operations.conftest import ORDERS
from datalake_assets_tests.operations.shared_catalogs import SharedCatalog, ready_rest_catalog

__all__ = ["Place", "check_many_appends", "in_folder", "on_rest"]

SCHEMA = [{"name": "id", "type": "long"}, {"name": "at", "type": "date"}]
DAYS = 3


@dataclass(frozen=True, slots=True)
class Place:
    """A lake, and its table as others see it.

    Attributes:
        operations: The write API over the lake.
        table: Loads the table.
        files: All files below its folder.
    """

    operations: Operations
    table: Callable[[], Table]
    files: Callable[[], set[str]]


@contextmanager
def in_folder(lake: Path) -> Iterator[Place]:
    """A lake in a folder, which is there."""
    with Operations(str(lake)) as operations, ExitStack() as stack:

        def table() -> Table:
            catalog = SqlCatalog("datalake", uri=f"sqlite:///{lake}/tenants/acme/catalog.sqlite")
            return stack.enter_context(closing(catalog)).load_table(("sales", "orders"))

        yield Place(operations, table, lambda: {str(each) for each in lake.rglob("*.*") if each.is_file()})


@contextmanager
def on_rest(server: S3Server) -> Iterator[Place]:
    """A lake in S3, with the server's own catalog."""
    shared = SharedCatalog(server)
    with Operations(shared.store) as operations:
        yield Place(operations, shared.table, lambda: shared.files(shared.table()))


def check_many_appends(place: Place, appends: int) -> list[str]:
    """Raises AssertionError where something is not as it should be; returns what was found, for people."""

    def ask(operation: str, **fields: Any) -> Any:
        answer = place.operations.answer({"operation": operation, **ORDERS, **fields}).to_json()
        assert answer["ok"], answer
        return answer

    def rows(snapshot_id: int | None = None) -> Counter[int]:
        return Counter(place.table().scan(snapshot_id=snapshot_id).to_arrow()["id"].to_pylist())

    ask("CREATE_TABLE", schema=SCHEMA, partitioning=[{"column": "at", "transform": "identity"}])
    for number in range(appends):
        ask("WRITE", records=[{"id": number, "at": f"2026-01-{1 + number % DAYS:02}"}], idempotency_key=str(number))
    expected = Counter(range(appends))
    last = place.table().current_snapshot()
    assert last is not None
    assert len(place.table().snapshots()) == appends
    assert len(list(place.table().scan().plan_files())) == appends

    began = time.monotonic()
    stats = ask("COMPACT")["stats"]
    compacted_s = time.monotonic() - began
    table = place.table()
    current = table.current_snapshot()
    assert current is not None
    assert (stats["files_before"], stats["files_after"]) == (appends, DAYS)
    assert len(list(table.scan().plan_files())) == DAYS, "not one file per partition"
    assert len({task.file.partition[0] for task in table.scan().plan_files()}) == DAYS
    assert current.summary is not None
    assert current.summary.operation.value == "replace"
    assert rows() == rows(last.snapshot_id) == expected
    sql = "SELECT count(*), sum(id) FROM orders"
    answers = [ask("QUERY", sql=sql, snapshot_id=each.snapshot_id)["rows"] for each in (last, current)]
    assert answers[0] == answers[1]

    before = _without_metadata(place.files())
    named = _named(table, table.snapshots()) - _named(table, [current])
    with place.operations._tenant("acme") as tenant:  # requests expire nothing that is younger than an hour
        now = datetime.now(UTC) + timedelta(hours=1)
        expiry = tenant.load("sales", "orders").expire(older_than=now, now=now)
    gone = before - _without_metadata(place.files())
    assert len(expiry.snapshots) == appends
    assert gone == named, f"{len(gone - named)} too many are gone, {len(named - gone)} are left"
    assert rows() == expected
    assert _without_metadata(place.files()) == _named(place.table(), place.table().snapshots())
    return [
        f"{appends} appends: {appends} files became {DAYS}, one a partition, in {compacted_s:.1f} s; replace",
        f"time travel to the {appends} appends read {sum(expected.values())} rows",
        f"{len(expiry.snapshots)} snapshots expired: {len(gone)} files are gone, which only they named, and no other",
    ]


def _without_metadata(files: Iterable[str]) -> set[str]:
    return {each.removeprefix("file://") for each in files if each.endswith((".parquet", ".avro"))}


def _named(table: Table, snapshots: Iterable[Snapshot]) -> set[str]:
    """Manifest lists, manifests and data files that snapshots name, by pyiceberg's own reading."""
    found: set[str] = set()
    manifests = {}
    for snapshot in snapshots:
        found.add(snapshot.manifest_list)
        manifests |= {each.manifest_path: each for each in snapshot.manifests(table.io)}
    for path, manifest in manifests.items():
        found |= {path, *(entry.data_file.file_path for entry in manifest.fetch_manifest_entry(table.io))}
    return _without_metadata(found)


def main() -> None:
    """Checks it, and prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--appends", type=int, default=500)
    parser.add_argument("--catalog", choices=["sqlite", "rest"], default="sqlite")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.catalog == "rest":
            server = stack.enter_context(S3Server(folder, grace_s=1))
            ready_rest_catalog(server)
            place = stack.enter_context(on_rest(server))
        else:
            place = stack.enter_context(in_folder(folder))
        print(f"{options.catalog}:")
        for line in check_many_appends(place, options.appends):
            print(line)


if __name__ == "__main__":
    main()

"""What must be true of a lake at any moment, and what once a retry and a repair are through."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.core.feed_state import FeedState
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.store.base import Store
from datalake_assets_tests.crash.scenarios import Row, Rows, Scenario, rows_of

__all__ = ["CrashError", "check_after_crash", "check_after_retry", "check_summary", "feed_state", "require_equal"]


class CrashError(AssertionError):
    """A crash did harm."""


def _require(condition: object, what: str) -> None:
    if not condition:
        raise CrashError(what)


def require_equal(what: str, found: Counter[Any], expected: Counter[Any]) -> None:
    """Compares what stands with what was sent.

    Raises:
        CrashError: Something is missing, or there too often.
    """
    if found != expected:
        missing, more = list((expected - found).items())[:5], list((found - expected).items())[:5]
        raise CrashError(f"{what}: {found.total():,} for {expected.total():,}; missing {missing}, too many {more}")


def feed_state(store: Store, scenario: Scenario) -> FeedState:
    """The feed's state, which is whole at any time."""
    key = f"control/{scenario.feed.path}/feed.json"
    return FeedState.from_bytes(store.get(key)[0], where=key) if store.head(key) else FeedState()


def listed_rows(store: Store, scenario: Scenario) -> dict[str, list[Row]]:
    """By folder, what a reader sees that lists files and knows nothing of manifests. Each file has to be whole."""
    found: dict[str, list[Row]] = defaultdict(list)
    for info in store.list(scenario.feed.path):
        folder, _, name = info.key.rpartition("/")
        _require(name.endswith(".parquet"), f"a data folder holds {info.key}")
        try:
            table = pq.read_table(store.path(info.key), filesystem=store.filesystem(), partitioning=None)
        except (pa.ArrowException, OSError) as error:
            raise CrashError(f"{info.key} cannot be read: {error}") from error
        found[folder] += rows_of(table)
    _check_disk(store, scenario)
    return found


def _check_disk(store: Store, scenario: Scenario) -> None:
    """Globs and listings see hidden files too; our own listing might not."""
    if store.uri.startswith("s3:"):
        return
    for folder, _, names in os.walk(Path(store.uri) / scenario.feed.path):
        strange = [name for name in names if not name.endswith(".parquet")]
        _require(not strange, f"{folder} holds {strange}")


def _folder_of(row: Row) -> str:
    return f"{row[2]:year=%Y/month=%m/day=%d}"


def check_after_crash(store: Store, scenario: Scenario, states: range) -> None:
    """A crashed export may have landed anything from nothing to all, whole; what was there before still is.

    Args:
        store: The lake.
        scenario: What was exported.
        states: From the last state that was landed for certain to the newest one; empty before the first.
    """
    before = scenario.truth(states[0]) if len(states) > 1 else frozenset()
    truths = [scenario.truth(state) for state in states]
    table = HiveTable(store, scenario.feed)
    listed = listed_rows(store, scenario)
    scanned = rows_of(table.scan().read_all()) if feed_state(store, scenario).schema else []
    _require(len(scanned) == len(set(scanned)), "a reader of the manifests sees rows twice")
    if scenario.feed.kind == "table":
        _require(
            frozenset(scanned) in ({frozenset()} if not before else set()) | set(truths), "not one of the versions"
        )
        _check_versions(store, scenario, listed, states)
        return
    seen = frozenset(row for rows in listed.values() for row in rows)
    _require(seen <= frozenset().union(*truths), "a lister sees rows that the source never had")
    if scenario.selected is None:
        _require(before <= frozenset(scanned) <= truths[-1], "a reader of the manifests sees other rows")
        _require(before <= seen, "a lister misses rows")
        return
    for key in scenario.selected:
        _check_replaced(key, before, truths, frozenset(scanned), seen)


def _check_replaced(key: str, before: Rows, truths: list[Rows], scanned: Rows, seen: Rows) -> None:
    def part(rows: Rows) -> Rows:
        return frozenset(row for row in rows if f"{row[2]:%Y-%m-%d}" == key)

    possible = [part(truth) for truth in truths] + ([] if before else [frozenset()])
    _require(part(scanned) in possible, f"{key} mixes two pulls")
    _require(any(rows <= part(seen) for rows in possible), f"a lister misses rows of {key}")


def _check_versions(store: Store, scenario: Scenario, listed: dict[str, list[Row]], states: range) -> None:
    """Each version that is entered holds one state of the source, whole."""
    truths = {scenario.truth(state) for state in range(states[-1] + 1)}
    for version in feed_state(store, scenario).versions:
        rows = listed.get(f"{scenario.feed.path}/version=v{version.number}", [])
        _require(len(rows) == version.rows, f"v{version.number} has {len(rows)} rows of {version.rows}")
        _require(frozenset(rows) in truths, f"v{version.number} is no state of the source")


def check_after_retry(store: Store, scenario: Scenario, state: int) -> None:
    """All rows of the source, each once, for every reader; nothing else; and the lake says so itself."""
    truth = scenario.truth(state)
    table = HiveTable(store, scenario.feed)
    _require(Counter(rows_of(table.scan().read_all())) == Counter(truth), "a reader of the manifests sees other rows")
    listed = listed_rows(store, scenario)
    if scenario.feed.kind == "table":
        _check_versions(store, scenario, listed, range(state + 1))
        kept = {f"{scenario.feed.path}/version=v{each.number}" for each in feed_state(store, scenario).versions}
        _require(set(listed) == kept, f"versions {sorted(kept)} are kept, {sorted(listed)} are there")
        _require(len(kept) <= scenario.feed.retention.versions, "too many versions are kept")
    else:
        rows = [row for rows in listed.values() for row in rows]
        _require(Counter(rows) == Counter(truth), f"a lister sees {len(rows)} rows instead of {len(truth)}")
        for folder, members in listed.items():
            _require(all(folder.endswith(_folder_of(row)) for row in members), f"{folder} holds rows of another day")
    differences = list(table.verify(deep=True))
    _require(not differences, f"verify: {differences}")
    _require(quarantined(store, scenario) == scenario.quarantined(state), "other rows are quarantined")


def check_summary(store: Store, scenario: Scenario, state: int) -> None:
    """``_metadata.json`` is whole, and counts what is there."""
    summary = json.loads(store.get(f"metadata/{scenario.feed.path}/_metadata.json")[0])
    versions = feed_state(store, scenario).versions
    rows = sum(version.rows for version in versions) if versions else len(scenario.truth(state))
    counted = summary["total_records"]
    _require(counted == rows, f"_metadata.json counts {counted} rows of {rows}")


def quarantined(store: Store, scenario: Scenario) -> frozenset[str]:
    """Positions of the quarantined rows; a row may be there twice."""
    lines = [
        line for info in store.list(f"quarantine/{scenario.feed.path}") for line in store.get(info.key)[0].splitlines()
    ]
    return frozenset(json.loads(line)["position"] for line in lines)

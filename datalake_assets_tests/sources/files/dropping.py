"""A lake with one feed of dropped files, and a folder to drop them into."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from datalake_assets.core.facts import WriteReport
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake.item_ledger import ItemLedger
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import load_settings
from datalake_assets.sources.files.contents import ContentLimits, Contents, prepared
from datalake_assets.sources.files.file_reading import ReadingOptions, opened
from datalake_assets.sources.systems import connect

#: When files are dropped, but for those that say otherwise.
DROPPED = datetime(2025, 3, 1, 12, tzinfo=UTC)
LATER = DROPPED + timedelta(days=1)
only_local = pytest.mark.parametrize("place", ["local parquet"], indirect=True)


def files_feed(
    location: str,
    *,
    kind: str = "stream",
    kept_as: str = "parquet",
    source: dict[str, Any] | None = None,
    **changes: Any,
) -> Feed:
    """A feed of files; a moment is old enough."""
    said = {"type": "files", "location": location, "min_age_s": 0, **(source or {})}
    document = {"name": "s", "kind": kind, "source": said, "start": "2010-01-01", **changes}
    return parse_feed(json.dumps({**document, "format": kept_as} if kind == "stream" else document))


def contents(data: bytes, encoding: str | None = None) -> Contents:
    """A file's, prepared to be read."""
    return prepared(io.BytesIO(data), is_kept=True, encoding=encoding, limits=ContentLimits())


def read(
    data: str | bytes, name: str = "a.csv", **options: Any
) -> tuple[dict[str, str], list[tuple[Any, ...]], list[tuple[int, str]]]:
    """Types by column, rows, and lines of bad rows with the reason."""
    file = opened(name, contents(data if isinstance(data, bytes) else data.encode()), ReadingOptions(**options))
    kinds = file.kinds()
    types = {each: kinds[each].type for each in kinds}
    parsed = list(file.rows(types))
    rows = [tuple(row.values()) for each in parsed for row in each.rows.to_pylist()]
    return (
        {each: str(kind) for each, kind in types.items()},
        rows,
        [(bad.line, bad.reason) for each in parsed for bad in each.bad],
    )


@dataclass
class Dropping:
    """A folder, a feed of it, and a lake."""

    store: Store
    folder: Path
    feed: Feed
    landed: list[WriteReport] = field(default_factory=list)

    def drop(self, name: str, content: str | bytes, *, at: datetime = DROPPED) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        os.utime(part, (at.timestamp(), at.timestamp()))
        part.rename(path)

    def export(self, *, new_epoch: bool = False) -> WriteReport:
        table = open_table(self.store, self.feed)
        plan = table.plan(new_epoch=new_epoch)
        with connect("files", load_settings()) as source:
            self.landed.append(
                table.write(source.read(self.feed, plan.request), partitions=plan.partitions, run_id="run")
            )
        return self.landed[-1]

    def rows(self, *columns: str) -> list[Any]:
        """Rows of the lake as tuples, sorted."""
        table = open_table(self.store, self.feed).scan(columns=list(columns) or None).read_all()
        return sorted(zip(*(each.to_pylist() for each in table.columns), strict=True), key=repr)

    def quarantined(self) -> list[tuple[str, str]]:
        """Where each row of quarantine stood, without its checksum, and why it is there."""
        found = {(row.position, row.reason) for _, row in open_table(self.store, self.feed).quarantined()}
        return sorted((_place(position), reason) for position, reason in found)

    def remembered(self) -> dict[str, dict[str, Any]]:
        entries: Iterable[dict[str, Any]] = ItemLedger(FeedFolder(self.store, self.feed)).entries().to_pylist()
        return {each["name"]: each for each in entries}


def dated(*days: int, value: int = 0) -> str:
    """A file of a row a day, of March 2025."""
    return "id,at\n" + "".join(f"{value},2025-03-{day:02} 06:00:00\n" for day in days)


def by_day(dropping: Dropping) -> Dropping:
    return Dropping(dropping.store, dropping.folder, dropping.feed.model_copy(update={"time_column": "at"}))


def _place(position: str) -> str:
    name, _, rest = position.rpartition("#")
    return name + (f":{rest.rpartition(':')[2]}" if ":" in rest and not rest.startswith("refused") else "")

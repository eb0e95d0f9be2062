"""What a feed declares: one JSON document in the lake's registry, validated here, once, with pydantic.

Secrets are never part of a feed; they are settings.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from datalake_assets.errors import ConfigError, InvalidFeed
from datalake_assets.feed_sinks import SinkModel, as_declared_sink
from datalake_assets.feed_sources import (
    ADOPTED,
    AssetSource,
    DeltaTableSource,
    FeedKind,
    FolderSource,
    IcebergTableSource,
    MartSource,
    PositionKind,
    SourceModel,
    SystemSource,
    as_declared,
)
from datalake_assets.live_policies import MOST_TILES, BatchPolicy, LiveWindowPolicy, Tile
from datalake_assets.policies import (
    MIB,
    MOST,
    Checks,
    CompactionPolicy,
    Duration,
    Freshness,
    Limits,
    Merging,
    Model,
    ParquetFormat,
    RangeRule,
    Retention,
    RunPolicy,
    problems_line,
)

__all__ = [
    "MAX_PARTITIONS",
    "ColumnNote",
    "Feed",
    "contradiction",
    "limits_problem",
    "parse_feed",
    "partitions_problem",
]

#: Feed names become folders, asset keys and SQL identifiers.
NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,127}")
#: Dagster slows, then breaks, far above this many partitions of an asset.
MAX_PARTITIONS = 20_000
#: Marts are streams and tables that lie in a folder of their own.
MARTS_FOLDER = "marts"
#: The check of feeds that are merged: no two rows of a key.
KEY_CHECK = "unique_key"
#: No event is older: the epoch of every source's clock.
EARLIEST_START = date(1970, 1, 1)


class ColumnNote(Model):
    """What people should know of a column; shown in the UI and the report, and kept in the files.

    Attributes:
        description: In a sentence; Markdown.
        unit: Of its values, like ``USD`` or ``ms``.
        tags: Dagster tags, like ``{"pii": "email"}``.
    """

    description: str = ""
    unit: str = ""
    tags: dict[str, str] = Field(default_factory=dict)

    @property
    def text(self) -> str:
        """Description and unit on one line."""
        unit = f"[{self.unit}]" if self.unit else ""
        return " ".join(part for part in (self.description, unit) if part)


class Feed(Model):
    """One stream or table to land, or one folder to keep in order, declared as data.

    Attributes:
        name: ``[a-z][a-z0-9_]{0,127}``; names the folder, the asset and the SQL view.
        kind: Stream, table, or an adopted folder.
        source: Where the rows come from.
        partition_by: Length of a stream's partitions.
        partition_prefix: Begins the names of a stream's partition columns: with ``pickup_`` its folders are
            ``pickup_year=2025/pickup_month=01/…``.
        time_column: The lake column that partitions a stream; default: the record's own timestamp, where its source has
            one. Of a folder, the column that its rows are ordered by; default: none.
        start: First day that a stream can have rows on; earlier rows are quarantined.
        lateness: How far behind the newest row late rows may come (pulled windows are read that far back again).
        format: What it is kept as, ``parquet`` or ``iceberg``, and how data files are written.
        write: What becomes of rows: ``append`` adds each; ``merge`` takes them for changes, and keeps one row a key.
        key: With ``merge``: the columns whose values together name a row.
        merge: With ``merge``: which change is the newest, and what deletes a row.
        schema_policy: ``freeze`` stops the feed when its source's columns change; ``evolve`` appends new ones;
            ``discard_row`` puts rows that do not fit into quarantine; ``discard_value`` leaves out the values that do
            not fit, and keeps such rows as they came beside the table.
        retention: Versions of a table that are kept.
        freshness: Ages at which the ``freshness`` check warns and fails.
        checks: Limits of the other checks, and rules on the rows.
        small_file_bytes: Files below this size count as small.
        compaction: When and how small files are merged.
        live: How much of its present the live view keeps, and what is late there.
        tiles: Questions in SQL that the live view always asks.
        runs: How much of it a run takes on, and what its launcher should give it.
        batch: When `datalake run` commits what it reads of a feed that it follows.
        schedule: Cron line (UTC) on which the feed is exported; None for none.
        owners: Dagster owners: ``team:name`` or an e-mail address.
        tags: Dagster tags.
        group: Dagster asset group.
        description: Shown in the UI; Markdown.
        columns: What people should know of columns, by their names in the lake.
        sinks: Where a stream's rows, or alerts about it, are sent on to once they are committed.
        enabled: False once archived.
        revision: Raised by every change; the registry's compare-and-swap counter.
    """

    name: str
    kind: FeedKind
    source: Annotated[SourceModel, SerializeAsAny(), BeforeValidator(as_declared)]
    partition_by: Literal["month", "day", "hour"] = "day"
    partition_prefix: Annotated[str, Field(pattern=r"^([a-z][a-z0-9_]{0,63}_)?$")] = ""
    time_column: str | None = None
    start: Annotated[date, Field(ge=EARLIEST_START)] = date(2025, 1, 1)
    lateness: Duration = timedelta(days=1)
    format: ParquetFormat = ParquetFormat()
    write: Literal["append", "merge"] = "append"
    key: tuple[str, ...] = ()
    merge: Merging = Merging()
    schema_policy: Literal["freeze", "evolve", "discard_row", "discard_value"] = "freeze"
    retention: Retention = Retention()
    freshness: Freshness = Freshness()
    checks: Checks = Checks()
    small_file_bytes: Annotated[int, Field(ge=0, le=MOST)] = 64 * MIB
    compaction: CompactionPolicy = CompactionPolicy()
    live: LiveWindowPolicy = LiveWindowPolicy()
    tiles: Annotated[tuple[Tile, ...], Field(max_length=MOST_TILES)] = ()
    runs: RunPolicy = RunPolicy()
    batch: BatchPolicy = BatchPolicy()
    schedule: str | None = None
    owners: tuple[str, ...] = ()
    tags: dict[str, str] = Field(default_factory=dict)
    group: str = ""
    description: str = ""
    columns: dict[str, ColumnNote] = Field(default_factory=dict)
    sinks: tuple[Annotated[SinkModel, SerializeAsAny(), BeforeValidator(as_declared_sink)], ...] = ()
    enabled: bool = True
    revision: Annotated[int, Field(ge=0, le=MOST)] = 0

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, name: str) -> str:
        if not NAME_PATTERN.fullmatch(name):
            msg = "names match [a-z][a-z0-9_]{0,127}"
            raise ValueError(msg)
        return name

    @model_validator(mode="before")
    @classmethod
    def _keys_are_checked(cls, document: Any) -> Any:
        """A feed that is merged has a rule that says so: no two rows of a key."""
        if not isinstance(document, dict) or document.get("write") != "merge":
            return document
        key, checks = document.get("key"), document.get("checks", {})
        if not isinstance(checks, dict) or not isinstance(key, list | tuple) or not key:
            return document
        rules = checks.get("rules", ())
        if not isinstance(rules, list | tuple) or any(_is_unique(rule, key) for rule in rules):
            return document
        rule = {"type": "unique", "name": KEY_CHECK, "columns": list(key), "across": "feed"}
        return {**document, "checks": {**checks, "rules": [*rules, rule]}}

    @model_validator(mode="after")
    def _merges_changes_in_order(self) -> Feed:
        problem = _merging_problem(self)
        if problem:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _tiles_can_be_shown(self) -> Feed:
        names = Counter(each.name for each in self.tiles)
        repeated = [name for name, count in names.items() if count > 1]
        problem = f"{repeated[0]!r} is there twice" if repeated else self.why_not_live if self.tiles else ""
        if problem:
            msg = f"tiles: {problem}"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _source_is_of_its_kind(self) -> Feed:
        if self.kind not in self.source.serves:
            msg = f"a {self.kind} cannot have a source of type {self.source.type!r}"
            raise ValueError(msg)
        if self.is_adopted and self.schedule is not None:
            msg = "nothing is exported to a folder, so it has no schedule"
            raise ValueError(msg)
        if self.is_adopted and self.schema_policy not in {"freeze", "evolve"}:
            msg = f"others write the folder, so no export can obey schema_policy {self.schema_policy!r}"
            raise ValueError(msg)
        if isinstance(self.source, AssetSource) and self.schedule is not None:
            msg = "an asset is run by its own project, so its feed has no schedule"
            raise ValueError(msg)
        if self.is_iceberg and not self.is_exported:
            msg = f"it is {self.written_by}, and only feeds that are exported can be kept as Iceberg tables"
            raise ValueError(msg)
        if self.partition_prefix and (self.kind is not FeedKind.STREAM or self.is_iceberg):
            msg = "partition_prefix: only streams of plain Parquet files have folders that are named by their times"
            raise ValueError(msg)
        if self.is_iceberg and self.is_mart:
            msg = "format: a mart is kept as Parquet files; an Iceberg table can be made of it by a project of its own"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _sinks_are_of_streams(self) -> Feed:
        names = [each.label for each in self.sinks]
        if len(set(names)) < len(names):
            msg = "sinks: two have one name; give them names"
            raise ValueError(msg)
        if self.kind is not FeedKind.STREAM and any(each.takes_rows for each in self.sinks):
            msg = f"sinks: rows of streams can be sent on, and this is a {self.kind}"
            raise ValueError(msg)
        return self

    @property
    def exported_from(self) -> SystemSource:
        """The source of a feed that is exported; raises `ConfigError` for one that is not."""
        if isinstance(self.source, SystemSource):
            return self.source
        cure = "; materialize that, in its own project" if isinstance(self.source, AssetSource) else ""
        raise ConfigError(f"feed {self.name!r} is {self.written_by}: nothing is exported to it{cure}")

    @property
    def is_adopted(self) -> bool:
        """Whether it is an adopted folder or table: other writers fill it where it lies, and we look after it."""
        return self.kind is FeedKind.FOLDER

    @property
    def is_adopted_table(self) -> bool:
        """Whether it is an adopted table of another format, whose own log says which files it has."""
        return isinstance(self.source, IcebergTableSource | DeltaTableSource)

    @property
    def is_iceberg(self) -> bool:
        """Whether it is kept as an Apache Iceberg table."""
        return self.format.type == "iceberg"

    @property
    def is_mart(self) -> bool:
        """Whether it is made of other feeds of the lake, by SQL."""
        return isinstance(self.source, MartSource)

    @property
    def is_exported(self) -> bool:
        """Whether rows are read from a system; not so of adopted folders and assets."""
        return isinstance(self.source, SystemSource)

    @property
    def position_kind(self) -> PositionKind:
        """The kind of positions that an exported feed keeps; raises `ConfigError` for one that is not exported."""
        return self.exported_from.position_kind(self.kind)

    @property
    def shares_numbers(self) -> bool:
        """Whether rows may share the number that their positions count by (`SystemSource.shared_numbers`)."""
        source = self.source
        if not isinstance(source, SystemSource) or self.position_kind is not PositionKind.OFFSETS:
            return False
        return source.shared_numbers

    @property
    def why_not_live(self) -> str:
        """Why it has no live view: each row has to be told from those seen before; empty if it has one."""
        if not self.is_exported or self.is_mart or self.kind is not FeedKind.STREAM:
            return "only streams that are exported from a source have a live view"
        if self.position_kind not in {PositionKind.OFFSETS, PositionKind.IDS}:
            return "it is pulled by windows, so that new rows cannot be told from those before; only numbered rows can"
        return ""

    @property
    def can_be_followed(self) -> bool:
        """Whether rows can be read on and on as they come, and committed in batches."""
        source = self.source
        return isinstance(source, SystemSource) and self.kind is FeedKind.STREAM and source.can_be_followed

    @property
    def ends_by_silence(self) -> bool:
        """Whether a read is over only once nothing came for a while."""
        return isinstance(self.source, SystemSource) and self.source.ends_by_silence(self.kind)

    @property
    def row_time(self) -> str | None:
        """The lake column that says when a row was: the declared one, or a stream's own timestamp; None if unknown."""
        if self.time_column is None and self.kind is FeedKind.STREAM and isinstance(self.source, SystemSource):
            return self.source.time_column
        return self.time_column

    @property
    def asset(self) -> str | None:
        """Key of the asset that stands for the feed in somebody's own Dagster project; None for feeds of ours."""
        return self.source.asset if isinstance(self.source, FolderSource | AssetSource) else None

    @property
    def written_by(self) -> str:
        """Who writes it, for messages: ``feed 'x' is …``."""
        if isinstance(self.source, AssetSource):
            return f"written by the Dagster asset {self.source.asset!r}"
        return ADOPTED[self.source.type] if self.is_adopted else "exported"

    @property
    def start_time(self) -> datetime:
        """Midnight UTC of ``start``."""
        return datetime(self.start.year, self.start.month, self.start.day, tzinfo=UTC)

    def pulled_from(self, watermark: datetime | None) -> datetime:
        """From when on a pull reads: as far before the ``watermark`` as rows may be late."""
        return self.start_time if watermark is None else max(self.start_time, watermark - self.lateness)

    def partition_count(self, now: datetime) -> int:
        """How many partitions a stream has by ``now``, which are there before they have rows; 0 for other feeds."""
        if self.kind is not FeedKind.STREAM:
            return 0
        length = {"hour": timedelta(hours=1), "day": timedelta(days=1), "month": timedelta(days=30)}
        return max(0, (now - self.start_time) // length[self.partition_by]) + 1

    @property
    def data_path(self) -> str:
        """Where its data lie in the lake: its path, or beside that after a conversion."""
        return self.format.folder or self.path

    @property
    def path(self) -> str:
        """``streams/<name>``, ``tables/<name>``, ``marts/<name>``, all folders of the lake, or ``folders/<name>``."""
        return f"{self.folder}/{self.name}"

    @property
    def folder(self) -> str:
        """The lake folder, and first part of the asset key, of feeds like this one."""
        return MARTS_FOLDER if self.is_mart else self.kind.folder


def _is_unique(rule: Any, key: Sequence[str]) -> bool:
    if not isinstance(rule, dict):
        return False
    same = (rule.get("type"), rule.get("across"), rule.get("columns")) == ("unique", "feed", list(key))
    return same or rule.get("name") == KEY_CHECK


def _merging_problem(feed: Feed) -> str:
    """Why a feed cannot be merged by its key, or has one for nothing; empty if all is well."""
    if feed.write != "merge":
        told = [name for name, given in (("key", feed.key), ("merge", feed.merge != Merging())) if given]
        return f"{told[0]}: it means nothing without write = 'merge'" if told else ""
    named = [*feed.key, *filter(None, (feed.merge.order_by, feed.merge.delete_column))]
    if not feed.key or not all(named):
        return "key: write = 'merge' needs the columns whose values together name a row"
    if len(set(named)) < len(named):
        return "key: its columns, order_by and delete_column are different columns"
    return _unordered_problem(feed)


def _unordered_problem(feed: Feed) -> str:
    """Why what a feed's source gives are no changes in order."""
    if feed.schema_policy == "discard_value":
        return "schema_policy: a value that is left out may be what orders or deletes: merge with 'discard_row'"
    if not feed.is_exported:
        return f"write: it is {feed.written_by}, and only feeds that are exported can be merged"
    if feed.kind is FeedKind.TABLE:
        return "write: a table is pulled whole, with one row a key; it is a stream of changes that can be merged"
    if feed.position_kind is not PositionKind.OFFSETS:
        return "write: changes can be merged only where their source numbers them: set its mode to 'offsets'"
    return ""


def partitions_problem(feed: Feed, now: datetime, *, most: int = MAX_PARTITIONS) -> str | None:
    """Why a feed's partitions are too many for Dagster; None if they aren't.

    Not part of the feed's own validation: partitions grow with time, and a feed must not become invalid by itself.
    """
    count = feed.partition_count(now)
    if count <= most:
        return None
    return (
        f"start: partitions by {feed.partition_by} since {feed.start} are {count:,}, above {most:,};"
        " take a later start, or longer partitions"
    )


def limits_problem(feed: Feed) -> str | None:
    """Why a limit of a feed can never do what it is for; None if all can.

    No part of the feed's own validation, which such ones formerly passed: they go on.
    """
    ages = (feed.freshness.max_event_age, feed.freshness.fail_event_age)
    if feed.kind is FeedKind.TABLE and ages != (None, None):
        return "freshness: rows of a table have no time; limit the age of its newest version, max_commit_age"
    return contradiction(feed)


def contradiction(feed: Feed) -> str | None:
    """Which two limits of a feed leave no room between them; None if none do. Nor is this part of its validation."""
    fresh, checks = feed.freshness, feed.checks
    pairs: dict[str, tuple[Any, Any]] = {
        "freshness: max_commit_age, fail_commit_age": (fresh.max_commit_age, fresh.fail_commit_age),
        "freshness: max_event_age, fail_event_age": (fresh.max_event_age, fresh.fail_event_age),
    }
    limits = {f"checks.{name}": limits for name, limits in checks if isinstance(limits, Limits)}
    limits |= {f"checks.rules: limits of {rule.check_name!r}": rule.limits for rule in checks.rules}
    pairs |= {f"{where}: warn, error": (each.warn, each.error) for where, each in limits.items()}
    for where, (warn, error) in pairs.items():
        if warn is not None and error is not None and warn > error:
            return f"{where}: it fails before it warns; let it warn earlier, or leave one of the two out"
    for rule in checks.rules:
        if isinstance(rule, RangeRule) and rule.is_empty:
            return f"checks.rules: no value lies between min and max of {rule.check_name!r}"
    return None


def parse_feed(document: str | bytes, *, name: str = "?") -> Feed:
    """Reads a feed's JSON document.

    Args:
        document: The JSON text.
        name: What to call the feed in an error, if the document doesn't say.

    Raises:
        InvalidFeed: It is not JSON or not a valid feed; says which field and why, on one line.
    """
    try:
        feed = Feed.model_validate_json(document)
        json.loads(document, object_pairs_hook=_once_each)
    except ValidationError as error:
        raise InvalidFeed(name, problems_line(error)) from error
    except ValueError as error:
        raise InvalidFeed(name, str(error)) from error
    return feed


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; of two members of one name, a reader would take one and a person may have meant the other."""
    repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if repeated:
        raise ValueError(f"{', '.join(map(repr, repeated))} is there twice")
    return dict(pairs)

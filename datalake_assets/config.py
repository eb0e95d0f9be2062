"""What people declare: settings of an installation, and feeds. Validated here, once, with pydantic.

A feed is data: one JSON document in the lake's registry. Secrets are never part of one; they are settings.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from datalake_assets.errors import ConfigError, InvalidFeed

__all__ = [
    "CompactionPolicy",
    "Environment",
    "Feed",
    "FeedKind",
    "FolderSource",
    "Freshness",
    "KsqlDBMode",
    "KsqlDBSource",
    "ParquetFormat",
    "Retention",
    "Settings",
    "Source",
    "load_settings",
    "parse_feed",
]

MIB = 1024 * 1024
#: Feed names become folders, asset keys and SQL identifiers.
NAME_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,127}")
#: Dagster slows, then breaks, far above this many partitions of an asset.
MAX_PARTITIONS = 20_000


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class FeedKind(StrEnum):
    """A stream's rows are appended to time partitions, a table's landed as full snapshots; a folder's others write."""

    STREAM = "stream"
    TABLE = "table"
    FOLDER = "folder"

    @property
    def folder(self) -> str:
        """The lake folder, and first part of the asset key, of feeds of this kind."""
        return f"{self.value}s"


class KsqlDBMode(StrEnum):
    """How a ksqlDB stream is read.

    ``offsets``: rows carry their source partition and offset, so that each is landed exactly once whatever its day: a
    push query with ROWPARTITION and ROWOFFSET read until caught up, or, where ``offset_columns`` names ordinary columns
    that carry them, a pull query. ``pull``: bounded pull queries; a partition's rows are replaced as a whole.
    """

    OFFSETS = "offsets"
    PULL = "pull"


class KsqlDBSource(_Model):
    """Rows of a ksqlDB stream or table, read over REST.

    Attributes:
        object: The stream's or table's name as ksqlDB lists it (usually upper case).
        mode: How a stream is read; ignored for tables, which are always pulled whole.
        offset_columns: The two ordinary columns that carry source partition and offset, if the stream has them; it must
            be partitioned as its source is, or rows come out of order and the read is refused.
        idle_s: Seconds without a new row after which a push query counts as caught up.
        rename: Column names in the lake by name at the source, where the lower-cased name cannot serve.
        properties: Query properties sent along, e.g. ``{"ksql.query.pull.table.scan.enabled": true}``.
    """

    type: Literal["ksqldb"] = "ksqldb"
    object: Annotated[str, Field(min_length=1)]
    mode: KsqlDBMode = KsqlDBMode.OFFSETS
    offset_columns: tuple[str, str] | None = None
    idle_s: Annotated[float, Field(gt=0, le=3600)] = 3.0
    rename: dict[str, str] = {}
    properties: dict[str, str | int | bool] = {}

    @property
    def where(self) -> str:
        """What is read, for a person."""
        return self.object


class FolderSource(_Model):
    """A folder of Parquet files that others write, adopted where it lies; see ``datalake adopt``.

    Attributes:
        uri: The folder: an absolute path, or ``s3://bucket/prefix``.
    """

    type: Literal["folder"] = "folder"
    uri: Annotated[str, Field(min_length=1)]

    @property
    def where(self) -> str:
        """What is read, for a person."""
        return self.uri


def _source_type(source: Any) -> str:
    """Documents may leave the type out, as they could before there were folders."""
    return str(source.get("type", "ksqldb") if isinstance(source, dict) else getattr(source, "type", ""))


#: The systems that a feed can read from, told apart by ``type``.
Source = Annotated[
    Annotated[KsqlDBSource, Tag("ksqldb")] | Annotated[FolderSource, Tag("folder")], Discriminator(_source_type)
]


class ParquetFormat(_Model):
    """How data files are written.

    Attributes:
        compression: Codec of the pages.
        profile: ``compatible`` is read by every current Athena, Spark 3 and DuckDB; ``compact`` is smaller, and not for
            Spark.
        target_file_size_bytes: Size at which a file is finished and the next begun.
        row_group_bytes: Decoded size of a row group.
    """

    type: Literal["parquet"] = "parquet"
    compression: Literal["snappy", "zstd"] = "snappy"
    profile: Literal["compatible", "compact"] = "compatible"
    target_file_size_bytes: Annotated[int, Field(ge=1 * MIB, le=4096 * MIB)] = 128 * MIB
    row_group_bytes: Annotated[int, Field(ge=1 * MIB, le=1024 * MIB)] = 16 * MIB


class Retention(_Model):
    """Which versions of a table are kept; the current one always is.

    Attributes:
        versions: This many, the newest.
        max_age: Of these, none that was pulled longer ago; None for any age.
    """

    versions: Annotated[int, Field(ge=1, le=1000)] = 7
    max_age: timedelta | None = None


class Freshness(_Model):
    """How old a feed may get before its ``freshness`` check warns.

    Attributes:
        max_commit_age: Age of the newest commit.
        max_event_age: Age of the newest row, by the feed's time column.
    """

    max_commit_age: timedelta | None = None
    max_event_age: timedelta | None = None


class CompactionPolicy(_Model):
    """When and how a feed's small files are merged; the target size is the format's ``target_file_size_bytes``.

    Attributes:
        enabled: False leaves the feed to explicit ``datalake compact`` commands.
        min_files: Small files that a partition must have before it is compacted; None: by environment, 3 in
            development, 15 in staging, 20 in production.
        max_files: Input files of one run.
        max_bytes: Input bytes of one run.
        fan_in: Small files of about one size are merged when there are this many: the ``k`` of size-tiered compaction.
        min_file_age: Younger files are left alone.
        min_partition_age: Partitions are left alone until this long after their newest commit.
        split_above: Files larger than this many times the target size are split; 0 for never.
        kernel: ``concat`` copies row groups, ``reencode`` decodes and encodes again; ``auto`` copies those that are big
            enough already and re-encodes the rest.
        sort_by: Columns that rows are sorted by within each compacted file; none keeps the order of time.
        verify: ``full`` compares every value or byte before the commit, ``rows`` the numbers of rows.
    """

    enabled: bool = True
    min_files: Annotated[int, Field(ge=2)] | None = None
    max_files: Annotated[int, Field(ge=2)] = 10_000
    max_bytes: Annotated[int, Field(ge=1 * MIB)] = 64 * 1024 * MIB
    fan_in: Annotated[int, Field(ge=2, le=100)] = 8
    min_file_age: timedelta = timedelta(0)
    min_partition_age: timedelta = timedelta(0)
    split_above: Annotated[float, Field(ge=0)] = 2.0
    kernel: Literal["auto", "concat", "reencode"] = "auto"
    sort_by: tuple[str, ...] = ()
    verify: Literal["full", "rows"] = "full"


class Feed(_Model):
    """One stream or table to land, or one folder to keep in order, declared as data.

    Attributes:
        name: ``[a-z][a-z0-9_]{0,127}``; names the folder, the asset and the SQL view.
        kind: Stream, table, or a folder that others write.
        source: Where the rows come from.
        partition_by: Length of a stream's partitions.
        time_column: The lake column that partitions a stream; default: the record's own timestamp, as ``rowtime``. Of a
            folder, the column that its rows are ordered by; default: none.
        start: First day that a stream can have rows on; earlier rows are quarantined.
        lateness: How far behind the newest row late rows may come (``pull`` mode reads that far back again).
        format: How data files are written.
        schema_policy: ``freeze`` stops the feed when its source's columns change; ``evolve`` appends new ones.
        retention: Versions of a table that are kept.
        freshness: Ages at which the ``freshness`` check warns.
        small_file_bytes: Files below this size count as small.
        compaction: When and how small files are merged.
        schedule: Cron line (UTC) on which the feed is exported; None for none.
        owners: Dagster owners: ``team:name`` or an e-mail address.
        tags: Dagster tags.
        group: Dagster asset group.
        description: Shown in the UI; Markdown.
        enabled: False once archived.
        revision: Raised by every change; the registry's compare-and-swap counter.
    """

    name: str
    kind: FeedKind
    source: Source
    partition_by: Literal["month", "day", "hour"] = "day"
    time_column: str | None = None
    start: date = date(2025, 1, 1)
    lateness: timedelta = timedelta(days=1)
    format: ParquetFormat = ParquetFormat()
    schema_policy: Literal["freeze", "evolve"] = "freeze"
    retention: Retention = Retention()
    freshness: Freshness = Freshness()
    small_file_bytes: Annotated[int, Field(ge=0)] = 64 * MIB
    compaction: CompactionPolicy = CompactionPolicy()
    schedule: str | None = None
    owners: tuple[str, ...] = ()
    tags: dict[str, str] = {}
    group: str = ""
    description: str = ""
    enabled: bool = True
    revision: Annotated[int, Field(ge=0)] = 0

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, name: str) -> str:
        if not NAME_PATTERN.fullmatch(name):
            msg = "names match [a-z][a-z0-9_]{0,127}"
            raise ValueError(msg)
        return name

    @field_validator("schedule")
    @classmethod
    def _schedule_is_cron(cls, schedule: str | None) -> str | None:
        if schedule is not None and len(schedule.split()) not in {5, 6} and not schedule.startswith("@"):
            msg = "a schedule is a cron line such as '0 * * * *'"
            raise ValueError(msg)
        return schedule

    @model_validator(mode="after")
    def _partitions_are_few_enough(self) -> Feed:
        hours = (datetime.now(UTC) - self.start_time) / timedelta(hours=1)
        if self.kind is FeedKind.STREAM and self.partition_by == "hour" and hours > MAX_PARTITIONS:
            msg = f"hourly partitions since {self.start} exceed {MAX_PARTITIONS}; use a later start, or days"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _source_is_of_its_kind(self) -> Feed:
        if (self.kind is FeedKind.FOLDER) is not isinstance(self.source, FolderSource):
            msg = f"a {self.kind} cannot have a source of type {self.source.type!r}"
            raise ValueError(msg)
        if self.kind is FeedKind.FOLDER and self.schedule is not None:
            msg = "nothing is exported to a folder, so it has no schedule"
            raise ValueError(msg)
        return self

    @property
    def ksqldb(self) -> KsqlDBSource:
        """The source of a feed that is exported; raises `ConfigError` for one that is not."""
        if isinstance(self.source, KsqlDBSource):
            return self.source
        raise ConfigError(f"feed {self.name!r} is a folder that others write: nothing is exported to it")

    @property
    def start_time(self) -> datetime:
        """Midnight UTC of ``start``."""
        return datetime(self.start.year, self.start.month, self.start.day, tzinfo=UTC)

    @property
    def path(self) -> str:
        """``streams/<name>``, ``tables/<name>`` or ``folders/<name>``; the first two are data folders in the lake."""
        return f"{self.kind.folder}/{self.name}"


class Environment(StrEnum):
    """Where an installation runs; sets compaction thresholds."""

    DEVELOPMENT = "development"
    STAGING = "staging"
    PRODUCTION = "production"


class Settings(BaseSettings):
    """Settings of an installation: environment variables with the prefix ``DATALAKE_``, or ``datalake.yaml``.

    Attributes:
        lake: The lake: a local folder or ``s3://bucket/prefix``.
        ksqldb_url: The ksqlDB server; unset, a demo lake reads its embedded server and any other lake is an error.
        ksqldb_user: User for HTTP Basic authentication.
        ksqldb_password: Its password.
        ksqldb_ca_file: PEM file of the authority that signed the server's certificate, if it is not a public one.
        ksqldb_timeout_s: Seconds to wait for a connection or for the next bytes of an answer.
        env: Sets compaction thresholds.
        compaction_memory_mb: Megabytes of decoded rows that a compaction may hold; says how much it does at once.
        s3_endpoint: URL of an S3-compatible server; unset: AWS. Credentials come by the AWS conventions only.
        webserver_url: The Dagster web server, told to reload when feeds change.
    """

    model_config = SettingsConfigDict(env_prefix="DATALAKE_", yaml_file="datalake.yaml", extra="forbid", frozen=True)

    lake: str = "./lake"
    ksqldb_url: str | None = None
    ksqldb_user: str | None = None
    ksqldb_password: SecretStr | None = None
    ksqldb_ca_file: str | None = None
    ksqldb_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    env: Environment = Environment.DEVELOPMENT
    compaction_memory_mb: Annotated[int, Field(ge=64)] = 400
    s3_endpoint: str | None = None
    webserver_url: str = "http://127.0.0.1:3000"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # pydantic-settings' signature
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # likewise
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments win over the environment, the environment over ``datalake.yaml``."""
        return init_settings, env_settings, YamlConfigSettingsSource(settings_cls)


def load_settings(**overrides: str | None) -> Settings:
    """Reads the settings; arguments that are not None win over environment and file.

    Raises:
        ConfigError: A setting is unknown or has an impossible value.
    """
    try:
        return Settings(**{name: value for name, value in overrides.items() if value is not None})  # type: ignore[arg-type]  # pydantic coerces
    except ValidationError as error:
        raise ConfigError(f"settings: {_first_line(error)}") from error


def parse_feed(document: str | bytes, *, name: str = "?") -> Feed:
    """Reads a feed's JSON document.

    Args:
        document: The JSON text.
        name: What to call the feed in an error, if the document doesn't say.

    Raises:
        InvalidFeed: It is not JSON or not a valid feed; says which field and why, on one line.
    """
    try:
        return Feed.model_validate_json(document)
    except ValidationError as error:
        raise InvalidFeed(name, _first_line(error)) from error


def _first_line(error: ValidationError) -> str:
    """All problems of a validation error on one line, without the values (they may be secret)."""
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'document'}: "
        f"{problem['msg'].removeprefix('Value error, ')}"
        for problem in error.errors(include_url=False, include_input=False)
    )

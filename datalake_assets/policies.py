"""What a feed may say about how it is kept: format, retention, freshness, compaction. Parts of a feed's declaration."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["MIB", "CompactionPolicy", "Freshness", "Model", "ParquetFormat", "Retention"]

MIB = 1024 * 1024


class Model(BaseModel):
    """What people write is checked to the letter, and never changes afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True)


class ParquetFormat(Model):
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


class Retention(Model):
    """Which versions of a table are kept; the current one always is.

    Attributes:
        versions: This many, the newest.
        max_age: Of these, none that was pulled longer ago; None for any age.
    """

    versions: Annotated[int, Field(ge=1, le=1000)] = 7
    max_age: timedelta | None = None


class Freshness(Model):
    """How old a feed may get before its ``freshness`` check warns.

    Attributes:
        max_commit_age: Age of the newest commit.
        max_event_age: Age of the newest row, by the feed's time column.
    """

    max_commit_age: timedelta | None = None
    max_event_age: timedelta | None = None


class CompactionPolicy(Model):
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

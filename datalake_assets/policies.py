"""What a feed may say about how it is kept: format, retention, compaction, checks. Parts of a feed's declaration."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, ValidationError, model_validator

__all__ = [
    "MIB",
    "Checks",
    "CompactionPolicy",
    "Duration",
    "Freshness",
    "Level",
    "Limits",
    "Merging",
    "Model",
    "NotNullRule",
    "ParquetFormat",
    "RangeRule",
    "RegexRule",
    "Retention",
    "Rule",
    "RuleBase",
    "RunPolicy",
    "SqlRule",
    "UniqueRule",
    "problem_text",
    "problems_line",
]

MIB = 1024 * 1024


class Model(BaseModel):
    """What people write is checked to the letter, and never changes afterwards."""

    model_config = ConfigDict(frozen=True, extra="forbid", str_strip_whitespace=True, allow_inf_nan=False)


#: Ages beyond a century are typing errors, and `now - age` leaves the calendar for some of them.
Duration = Annotated[timedelta, Field(ge=timedelta(0), le=timedelta(days=36_500))]
#: Counts beyond it are typing errors, and larger than any JSON reader keeps exactly.
MOST = 10**12


#: Columns that an Iceberg table's files are kept apart by; each multiplies the number of files.
MOST_PARTS = 4


class PartitionPart(Model):
    """A column by which an Iceberg table's files are kept apart, within the partitions that the feed has by time.

    Attributes:
        column: Its name in the lake.
        transform: ``identity``: files of each value by themselves. ``bucket``: of each of ``buckets`` hashes.
        buckets: Number of buckets; only with ``bucket``.
    """

    column: Annotated[str, Field(min_length=1)]
    transform: Literal["identity", "bucket"] = "identity"
    buckets: Annotated[int, Field(ge=1, le=10_000)] | None = None

    @model_validator(mode="after")
    def _has_buckets_or_none(self) -> PartitionPart:
        if (self.buckets is None) == (self.transform == "bucket"):
            msg = "give buckets with the transform 'bucket', and with no other"
            raise ValueError(msg)
        return self


class FormerForm(Model):
    """What a feed was kept as before its last conversion; its files are there until they are dropped.

    Attributes:
        type: As in `ParquetFormat`.
        folder: Where its data lie in the lake.
    """

    type: Literal["parquet", "iceberg"]
    folder: str


class ParquetFormat(Model):
    """What a feed is kept as, and how its data files are written.

    Attributes:
        type: ``parquet``: plain files in folders in Hive layout. ``iceberg``: an Apache Iceberg table of such files.
        compression: Codec of the pages.
        profile: ``compatible`` is read by every current Athena, Spark 3 and DuckDB; ``compact`` is smaller, and not for
            Spark.
        target_file_size_bytes: Size at which a file is finished and the next begun.
        row_group_bytes: Decoded size of a row group.
        parts: Of an Iceberg table: columns by which files are kept apart, besides the time.
        also: ``avro``: each file is written as Avro, too, below ``avro/`` in the same folders; of plain files alone.
        folder: Where the data lie in the lake; empty: under the feed's name. A conversion sets it.
        former: What a conversion has left. A conversion sets it.
    """

    type: Literal["parquet", "iceberg"] = "parquet"
    compression: Literal["snappy", "zstd"] = "snappy"
    profile: Literal["compatible", "compact"] = "compatible"
    target_file_size_bytes: Annotated[int, Field(ge=1 * MIB, le=4096 * MIB)] = 128 * MIB
    row_group_bytes: Annotated[int, Field(ge=1 * MIB, le=1024 * MIB)] = 23 * MIB // 2
    parts: Annotated[tuple[PartitionPart, ...], Field(max_length=MOST_PARTS)] = ()
    also: tuple[Literal["avro"], ...] = ()
    folder: str = ""
    former: FormerForm | None = None

    @model_validator(mode="after")
    def _is_also_avro_if_it_can(self) -> ParquetFormat:
        if self.also and self.type != "parquet":
            msg = "also: only feeds that are kept as plain Parquet files are written as Avro, too"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _has_parts_if_it_can(self) -> ParquetFormat:
        if self.parts and self.type != "iceberg":
            msg = "parts: only Iceberg tables have them; plain folders are by time alone"
            raise ValueError(msg)
        if len({(each.column, each.transform) for each in self.parts}) < len(self.parts):
            msg = "parts: one of them is there twice"
            raise ValueError(msg)
        return self

    @model_validator(mode="before")
    @classmethod
    def _is_named_by_its_type(cls, document: Any) -> Any:
        """``"iceberg"`` is all that most feeds have to say."""
        return {"type": document} if isinstance(document, str) else document


class Retention(Model):
    """Which versions of a table are kept; the current one always is.

    Attributes:
        versions: This many, the newest.
        max_age: Of these, none that was pulled longer ago; None for any age.
    """

    versions: Annotated[int, Field(ge=1, le=1000)] = 7
    max_age: Duration | None = None


class Freshness(Model):
    """How old a feed may get before its ``freshness`` check warns, and before it fails.

    Attributes:
        max_commit_age: Age of the newest export of the current partition (of a table: of its newest version).
        max_event_age: Age of the newest row, by the feed's time column.
        fail_commit_age: Age of that export above which the check is an error.
        fail_event_age: Age of that row above which the check is an error.
    """

    max_commit_age: Duration | None = None
    max_event_age: Duration | None = None
    fail_commit_age: Duration | None = None
    fail_event_age: Duration | None = None

    @property
    def is_watched(self) -> bool:
        """Whether any age is limited."""
        return any(limit is not None for limit in self.model_dump().values())


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
        kernel: ``concat`` copies row groups, ``reencode`` makes all of them anew; ``auto`` copies those that are big
            enough already and makes the rest anew.
        sort_by: Columns that rows are sorted by within each compacted file; none keeps the order of time.
        verify: ``full`` compares every byte copied, and every value of what was made anew by a reader that had no part
            in it, before the commit; ``pages`` leaves pages that were merged to the kernel that merged them; ``rows``
            compares the numbers of rows.
        summary_files: What becomes of a ``_metadata`` file that names the files of an adopted folder: ``keep`` it, and
            compact nothing that it names, or ``remove`` it just before the first merge is committed.
        recommend_every: At every so many commits of a partition, its materialization says whether compaction is
            recommended; 0 for never.
    """

    enabled: bool = True
    min_files: Annotated[int, Field(ge=2, le=MOST)] | None = None
    max_files: Annotated[int, Field(ge=2, le=MOST)] = 10_000
    max_bytes: Annotated[int, Field(ge=1 * MIB, le=MOST * MIB)] = 64 * 1024 * MIB
    fan_in: Annotated[int, Field(ge=2, le=100)] = 8
    min_file_age: Duration = timedelta(0)
    min_partition_age: Duration = timedelta(0)
    split_above: Annotated[float, Field(ge=0, le=MOST)] = 2.0
    kernel: Literal["auto", "concat", "reencode"] = "auto"
    sort_by: tuple[str, ...] = ()
    verify: Literal["full", "pages", "rows"] = "full"
    summary_files: Literal["keep", "remove"] = "keep"
    recommend_every: Annotated[int, Field(ge=0, le=MOST)] = 10


#: Names of Dagster's own tags that a person may set on a run; by the others Dagster, and we, find runs again.
_DAGSTERS_TAGS = {f"dagster/{name}" for name in ("max_retries", "max_runtime", "priority", "retry_strategy")}
_TAG = re.compile(r"(?!(\.?dagster|datalake)/)[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9._-]{1,127})?")


class RunPolicy(Model):
    """How much of a feed a run takes on, and what its launcher should give it; how to say so is the launcher's.

    Attributes:
        max_bytes: Bytes of files that a run of compactions merges, and that a run of a backfill lands; None: as the
            installation says, by `DATALAKE_RUN_MB`.
        partitions: Partitions of a stream that a run of a backfill exports; None: by their bytes where a launcher is
            named by `DATALAKE_RUN_LAUNCHER`, else all of them.
        cores: Cores for a run; None: by what its work is estimated to take.
        memory_mb: Memory for a run; None: likewise.
        tags: Dagster's tags of a run, which go before all that are made of the above, like
            ``{"dagster-celery/queue": "large"}``.
    """

    max_bytes: Annotated[int, Field(ge=1 * MIB, le=MOST * MIB)] | None = None
    partitions: Annotated[int, Field(ge=1, le=MOST)] | None = None
    cores: Annotated[float, Field(ge=0.25, le=1_000)] | None = None
    memory_mb: Annotated[int, Field(ge=256, le=MOST)] | None = None
    tags: dict[str, Annotated[str, Field(max_length=4_000)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _tags_are_a_launchers(self) -> RunPolicy:
        for name in self.tags:
            if name not in _DAGSTERS_TAGS and not _TAG.fullmatch(name):
                msg = f"tags: {name!r} is no tag of a launcher, nor one of {', '.join(sorted(_DAGSTERS_TAGS))}"
                raise ValueError(msg)
        return self


class Level(StrEnum):
    """How bad a figure is."""

    OK = "ok"
    WARN = "warn"
    ERROR = "error"


class Limits(Model):
    """What a figure may be at the most.

    Attributes:
        warn: Above it the check warns; none for never.
        error: Above it the check is an error; none for never.
    """

    warn: Annotated[float, Field(ge=0, le=MOST)] | None = None
    error: Annotated[float, Field(ge=0, le=MOST)] | None = None

    def level(self, figure: float) -> Level:
        """How bad a figure is."""
        if self.error is not None and figure > self.error:
            return Level.ERROR
        return Level.WARN if self.warn is not None and figure > self.warn else Level.OK


class RuleBase(Model):
    """What every rule on a feed's rows says.

    Attributes:
        name: Name of its check; default: made of its type and columns.
        limits: Percent of the rows that may break it; by default a single one is an error.
        when: ``write``: within each export, over the partitions that it wrote, whole. ``schedule``: nightly, over the
            partitions that changed, and those that broke it the last time. Default: ``write``, for unique and sql
            ``schedule``.
        timeout_s: Seconds that counting the rows of a partition may take; after that the check cannot be evaluated.
        description: Shown with the check.
    """

    name: str = ""
    limits: Limits = Limits(error=0)
    when: Literal["write", "schedule"] = "write"
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    description: str = ""

    @property
    def default_name(self) -> str:
        """The check's name where the rule has none."""
        return ""

    @property
    def check_name(self) -> str:
        """The check's name."""
        return self.name or re.sub(r"\W", "_", self.default_name)


class NotNullRule(RuleBase):
    """A column has a value in every row.

    Attributes:
        column: The column.
    """

    type: Literal["not_null"] = "not_null"
    column: str

    @property
    def default_name(self) -> str:
        """``not_null_<column>``."""
        return f"not_null_{self.column}"


class UniqueRule(RuleBase):
    """No two rows have the same values in some columns; rows with a null in one of them don't count.

    Attributes:
        columns: The columns.
        across: Unique within each partition, or in the whole feed (of a table: in its current version).
    """

    type: Literal["unique"] = "unique"
    columns: Annotated[tuple[str, ...], Field(min_length=1)]
    across: Literal["partition", "feed"] = "partition"
    when: Literal["write", "schedule"] = "schedule"

    @property
    def default_name(self) -> str:
        """``unique_<columns>``."""
        return f"unique_{'_'.join(self.columns)}"


class RangeRule(RuleBase):
    """A column's values lie between two bounds, both included; nulls pass.

    Attributes:
        column: The column.
        min: The least value: a number, or a text such as ``2025-01-01`` for dates and times; None for none.
        max: The greatest value, written as ``min`` is; None for none.
    """

    type: Literal["range"] = "range"
    column: str
    min: int | float | str | None = None
    max: int | float | str | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> RangeRule:
        if self.min is None and self.max is None:
            msg = "give min, max or both"
            raise ValueError(msg)
        return self

    @property
    def is_empty(self) -> bool:
        """Whether no number lies within; of texts, whose order the column decides, nobody can tell."""
        bounds = (self.min, self.max)
        return all(isinstance(bound, int | float) for bound in bounds) and bounds[0] > bounds[1]  # type: ignore[operator]  # both are numbers

    @property
    def default_name(self) -> str:
        """``range_<column>``."""
        return f"range_{self.column}"


class RegexRule(RuleBase):
    """A text column's values match a regular expression as a whole; nulls pass.

    Attributes:
        column: The column.
        pattern: The expression, in RE2's syntax.
    """

    type: Literal["regex"] = "regex"
    column: str
    pattern: str

    @property
    def default_name(self) -> str:
        """``regex_<column>``."""
        return f"regex_{self.column}"


class SqlRule(RuleBase):
    """A query, in DuckDB's SQL, that returns the rows which break the rule.

    Attributes:
        query: One SELECT over the table ``data``, which is the partition that is checked; it reads nothing else.
    """

    type: Literal["sql"] = "sql"
    query: str
    when: Literal["write", "schedule"] = "schedule"


#: The rules that a feed can have, distinguished by ``type``.
Rule = Annotated[NotNullRule | UniqueRule | RangeRule | RegexRule | SqlRule, Discriminator("type")]


class Merging(Model):
    """How the changes of a feed that says ``write: merge`` become its rows: one row a key, the newest.

    Attributes:
        order_by: The column whose greatest value is the newest change; None: the source's own order, its offsets.
        delete_column: The column that marks deletions.
        delete_values: What it says of them, as text; capitals count.
        deletes_kept: With ``order_by``: how long a deleted key is remembered, so that an older change that comes later
            does not bring its row back.
        envelope: ``debezium``: a change is ``before``, ``after`` and ``op``, and its row is ``after``; ``none``: the
            change is the row.
    """

    order_by: str | None = None
    delete_column: str | None = None
    delete_values: Annotated[tuple[str, ...], Field(min_length=1)] = ("d", "delete", "true")
    deletes_kept: Duration = timedelta(days=30)
    envelope: Literal["none", "debezium"] = "none"

    @model_validator(mode="after")
    def _envelope_marks_deletions(self) -> Merging:
        if self.envelope == "debezium" and self.delete_column is not None:
            msg = "delete_column: a Debezium envelope marks deletions itself, by its op"
            raise ValueError(msg)
        return self


#: Checks that every feed has.
BUILT_IN_CHECKS = ("file_size", "freshness", "quarantine", "row_count", "schema", "small_files")
#: Checks of feeds whose source can tell what waits.
QUEUE_CHECKS = ("queue_depth",)


class Checks(Model):
    """How bad things may get before a feed's checks warn, and before they fail; and the feed's own rules.

    Attributes:
        small_bytes_percent: ``file_size``: share of a partition's bytes in small files that compaction would merge.
        oversize_bytes_percent: ``file_size``: share of its bytes in files that compaction would split.
        small_files: ``small_files``: small files of a partition. Whatever it is, the check warns while the compaction
            policy would merge some.
        quarantined_percent: ``quarantine``: share of an export's rows that could not be landed.
        queue_depth: ``queue_depth``: messages that wait at a source which can tell: above ``warn`` they need attention,
            above ``error`` they are a problem.
        row_drop_percent: ``row_count``: rows that a table's new version may have less than the one before.
        blocking: Names of checks whose failure (an error, not a warning) keeps downstream assets of the same run from
            running.
        rules: What the feed's rows have to meet, a check each.
    """

    small_bytes_percent: Limits = Limits(warn=50)
    oversize_bytes_percent: Limits = Limits(warn=0)
    small_files: Limits = Limits()
    quarantined_percent: Limits = Limits(warn=0, error=5)
    queue_depth: Limits = Limits(warn=50, error=100)
    row_drop_percent: Limits = Limits(warn=10)
    blocking: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()

    @property
    def rules_on_write(self) -> tuple[Rule, ...]:
        """The rules that exports evaluate."""
        return tuple(rule for rule in self.rules if rule.when == "write")

    @property
    def rules_on_schedule(self) -> tuple[Rule, ...]:
        """The rules that are evaluated at night."""
        return tuple(rule for rule in self.rules if rule.when == "schedule")

    @model_validator(mode="after")
    def _names_are_known_and_unique(self) -> Checks:
        names = [*BUILT_IN_CHECKS, *QUEUE_CHECKS, *(rule.check_name for rule in self.rules)]
        unfit = [name for name in names if not re.fullmatch(r"\w+", name)]
        problems = [f"rule {name or 'of type sql'!r} needs a name of letters, digits and _" for name in unfit]
        problems += [f"two checks are called {name!r}" for name, count in Counter(names).items() if count > 1]
        problems += [f"blocking: there is no check {name!r}" for name in self.blocking if name not in names]
        late = [rule.check_name for rule in self.rules if rule.when == "schedule" and rule.check_name in self.blocking]
        problems += [f"blocking: {name!r} runs on a schedule; give it when = 'write'" for name in late]
        if problems:
            raise ValueError("; ".join(problems))
        return self


def problems_line(error: ValidationError) -> str:
    """All problems of a validation error on one line, without the values (they may be secret)."""
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'document'}: {problem_text(problem)}"
        for problem in error.errors(include_url=False, include_input=False)
    )


def problem_text(problem: Mapping[str, Any]) -> str:
    """One problem, as pydantic or a validator of ours says it."""
    return str(problem["msg"]).removeprefix("Value error, ")

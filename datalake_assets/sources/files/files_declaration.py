"""What dropped files declare of themselves as a source: what a feed may say of them, their settings, their options.

Loaded wherever feeds are read, so nothing heavy is imported before the connection.
"""

from __future__ import annotations

import codecs
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator

from datalake_assets.errors import ConfigError, InvalidFeed
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind, PositionKind, SystemSource
from datalake_assets.settings import Settings
from datalake_assets.sources.base import FeedOption, System

__all__ = ["FILES", "FilesSettings", "FilesSource", "declared_files"]


class FilesSource(SystemSource):
    """CSV, TSV or JSON files that are dropped into a folder or under an S3 prefix.

    Each row of the lake has two columns more than its file: the file's name, relative to the location, and when the
    file was last written. The latter is the time of the row, unless ``time_column`` names a column of the file's.

    Attributes:
        location: An absolute path of a folder, or ``s3://bucket/prefix``.
        pattern: Which names count, like ``*.csv.gz``: of the last part, or of the whole relative name if it has ``/``.
        format: ``csv``, ``tsv``, ``json`` (an object a line, or one array), or ``auto``: by the name or the content.
        delimiter: Between fields of CSV; None: the likeliest of comma, semicolon, tab and bar.
        quote: Around fields; empty: quotes are like other characters.
        header: Whether the first record names the columns; None: what it looks like.
        skip_lines: Lines before the first record.
        encoding: What files are written in; None: UTF-8, UTF-16 or Latin-1, what it looks like.
        null_values: Texts without quotes that are null, besides the empty one.
        columns: Types of columns by their names in the lake, where they are not to be inferred: ``string``,
            ``boolean``, ``int32``, ``int64``, ``float``, ``double``, ``decimal(P, S)``, ``date``, ``timestamp``,
            ``timestamptz``, and the last two with ``_ns``.
        rename: Names in the lake by names in the files.
        on_change: What a file does that has changed: it replaces its former rows, is ignored, or appended.
        file_column: The lake's name of the column of the file's name.
        modified_column: The lake's name of the column of the file's time.
        min_age_s: Files that were written so few seconds ago are left for later: whoever writes them may not be done.
        events_queue: URL of an SQS queue that S3 sends notifications of new objects to: the sensor then sees a file at
            once, whatever its name. Nothing else may read that queue.
        max_files: Files that are committed together, the oldest first; an export goes on until none waits.
    """

    serves: ClassVar[frozenset[FeedKind]] = frozenset({FeedKind.STREAM, FeedKind.TABLE})
    news_sensor: ClassVar[str] = "dropped_files_sensor"

    type: Literal["files"] = "files"
    location: Annotated[str, Field(min_length=1)]
    pattern: Annotated[str, Field(min_length=1)] = "*"
    format: Literal["auto", "csv", "tsv", "json"] = "auto"
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    quote: Annotated[str, Field(max_length=1)] = '"'
    header: bool | None = None
    skip_lines: Annotated[int, Field(ge=0, le=1000)] = 0
    encoding: str | None = None
    null_values: tuple[str, ...] = ()
    columns: dict[str, str] = Field(default_factory=dict)
    rename: dict[str, str] = Field(default_factory=dict)
    on_change: Literal["replace", "ignore", "append"] = "replace"
    file_column: Annotated[str, Field(min_length=1)] = "source_file"
    modified_column: Annotated[str, Field(min_length=1)] = "source_modified"
    min_age_s: Annotated[float, Field(ge=0, le=86_400)] = 2.0
    events_queue: str = ""
    max_files: Annotated[int, Field(ge=1, le=100_000)] = 10_000

    # a tab is a delimiter, and a space may be one, though texts are stripped elsewhere
    model_config = ConfigDict(str_strip_whitespace=False)

    @field_validator("delimiter", "quote")
    @classmethod
    def _is_one_byte(cls, value: str | None) -> str | None:
        if value and (not value.isascii() or value in "\r\n\0"):
            msg = "take one ASCII character that ends no line, and is not NUL"
            raise ValueError(msg)
        return value

    @field_validator("encoding")
    @classmethod
    def _encoding_is_known(cls, value: str | None) -> str | None:
        try:
            if value is not None and not codecs.lookup(value)._is_text_encoding:  # noqa: SLF001  `open` asks the same
                raise LookupError  # noqa: TRY301
        except LookupError:
            msg = f"there is no encoding {value!r}"
            raise ValueError(msg) from None
        return value

    @property
    def where(self) -> str:
        """What is read, for a person."""
        return f"{self.location.rstrip('/')}/{self.pattern}"

    @property
    def time_column(self) -> str:
        """The column of the file's time."""
        return self.modified_column

    def position_kind(self, kind: FeedKind) -> PositionKind:
        """Files of a stream are remembered one by one; a table's are read all, for each version."""
        return PositionKind.SNAPSHOT if kind is FeedKind.TABLE else PositionKind.IDS

    def reading(self, kind: FeedKind) -> str:
        """``files``, or ``snapshots`` of a table's."""
        return "snapshots" if kind is FeedKind.TABLE else "files"

    def problem(self) -> str | None:
        """Types that are none, names that no columns can have, an address that is no place."""
        from datalake_assets.core.schema import lake_names  # noqa: PLC0415  Arrow, and every command reads feeds
        from datalake_assets.sources.files.dropped_objects import open_place  # noqa: PLC0415  the same
        from datalake_assets.sources.files.text_values import named_type  # noqa: PLC0415  the same

        if self.delimiter is not None and self.delimiter == self.quote:
            return f"source.quote: {self.quote!r} is the delimiter, too"
        try:
            open_place(self.location, endpoint=None)
            for name, kind in self.columns.items():
                try:
                    named_type(kind)
                except ValueError as error:
                    return f"source.columns: {name!r}: {error}"
            own = (self.file_column, self.modified_column)
            lake_names([*own, *self.columns, *self.rename], feed=self.location, rename=self.rename)
        except (ConfigError, InvalidFeed) as error:
            return f"source: {getattr(error, 'reason', error)}"
        if "://" not in self.location and not self.location.startswith(("/", "~")):
            return "source.location: write the whole path; commands and Dagster run in different folders"
        return None


class FilesSettings(Settings):
    """Settings of dropped files.

    Attributes:
        files_s3_endpoint: URL of the S3-compatible server on which files are dropped; unset: the lake's, or AWS.
        files_workers: Files that are read at once.
        files_max_unpacked_mb: Megabytes that a packed file may become, at the most; no more than 250 times its size,
            unless it stays below 64.
    """

    files_s3_endpoint: str | None = None
    files_workers: Annotated[int, Field(ge=1, le=64)] = 4
    files_max_unpacked_mb: Annotated[int, Field(ge=1)] = 16_384


def declared_files(feed: Feed) -> FilesSource:
    """What a feed says of dropped files.

    Raises:
        ConfigError: It reads something else.
    """
    source = feed.exported_from
    if isinstance(source, FilesSource):
        return source
    raise ConfigError(f"feed {feed.name!r} reads {source.type}, not files")


FILES = System(
    model=FilesSource,
    connect="datalake_assets.sources.files.files_source:connect",
    settings=FilesSettings,
    options=(
        FeedOption("--location", "location", "Folder or S3 prefix where files are dropped.", "URI", required=True),
        FeedOption("--pattern", "pattern", "Names of the files that count.  [default: *]", "GLOB"),
        FeedOption(
            "--file-format", "format", "How files are written.  [default: auto]", choices=("auto", "csv", "tsv", "json")
        ),
        FeedOption("--encoding", "encoding", "What files are written in.  [default: what it looks like]", "NAME"),
        FeedOption("--null-values", "null_values", "Texts that are null.", "TEXT,…", shape="list"),
        FeedOption("--column-type", "columns", "Type of a column.", "NAME=TYPE", shape="pairs"),
        FeedOption("--rename", "rename", "Name of a column in the lake.", "OLD=NEW", shape="pairs"),
        FeedOption(
            "--on-change",
            "on_change",
            "What a changed file does.  [default: replace]",
            choices=("replace", "ignore", "append"),
            streams_only=True,
        ),
    ),
    object_field="location",
)

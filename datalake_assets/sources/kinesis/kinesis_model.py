"""What Kinesis declares of itself as a source: what a feed may say of a stream, its settings, its options.

Loaded wherever feeds are read, so nothing heavy is imported before the connection.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from datalake_assets.errors import ConfigError, InvalidFeed
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind, PositionKind, SystemSource
from datalake_assets.settings import Settings
from datalake_assets.sources.base import FeedOption, System
from datalake_assets.sources.field_types import OTHER_FIELDS, FieldType

__all__ = [
    "ARRIVAL_TIME",
    "KEY",
    "KINESIS",
    "SEQUENCE_NUMBER",
    "SHARD",
    "SUB_SEQUENCE_NUMBER",
    "KinesisSettings",
    "KinesisSource",
    "declared",
]

#: Columns of every feed of a stream, whatever its records hold.
KEY, ARRIVAL_TIME = "kinesis_partition_key", "kinesis_arrival_time"
SHARD, SEQUENCE_NUMBER = "kinesis_shard_id", "kinesis_sequence_number"
SUB_SEQUENCE_NUMBER = "kinesis_sub_sequence_number"

#: Kinesis: a stream's name has at most 128 of these characters (API reference, StreamName).
_STREAM = r"^[a-zA-Z0-9_.-]{1,128}$"


class KinesisSource(SystemSource):
    """Records of a Kinesis stream, each landed once, by shard and sequence number.

    Attributes:
        stream: The stream's name.
        region: Its region; default: that of the settings, or of AWS's own conventions.
        value: What records hold: ``json``, objects with the members that ``fields`` declares; ``text`` in UTF-8, or
            ``binary``, landed as they are in the column ``value``. Default: ``json`` if fields are declared, else
            ``text``.
        fields: Types of the members of a JSON object, by their names.
        undeclared: What becomes of members that no field declares: they are landed together in the column
            ``other_fields``, as JSON; or left out; or their record goes to quarantine.
        aggregated: What becomes of records into which the Kinesis Producer Library has packed several: each is landed
            as a row of its own, under its own partition key; or the whole is landed as it is (``keep``). By ``split``,
            records that were packed with one which belongs to another shard go to quarantine, since the Library sends
            them again after a reshard; by ``split_all`` they are landed: other producers pack regardless of shards.
        key: Whether partition keys are landed, in the column ``kinesis_partition_key``.
        positions: Whether shard, sequence number and sub-sequence number are landed, in the columns
            ``kinesis_shard_id``, ``kinesis_sequence_number``, a text of decimal digits, and
            ``kinesis_sub_sequence_number``, which counts the records within an aggregated one from 0 on.
        rename: Column names in the lake by names at the source, where the lower-cased name cannot serve.
    """

    serves: ClassVar[frozenset[FeedKind]] = frozenset({FeedKind.STREAM})

    type: Literal["kinesis"] = "kinesis"
    stream: Annotated[str, Field(pattern=_STREAM)]
    region: Annotated[str, Field(pattern=r"^[a-z0-9-]*$")] = ""
    value: Literal["json", "text", "binary"] | None = None
    fields: dict[str, FieldType] = Field(default_factory=dict)
    undeclared: Literal["keep", "ignore", "reject"] = "keep"
    aggregated: Literal["split", "split_all", "keep"] = "split"
    key: Literal["text", "ignore"] = "text"
    positions: bool = True
    rename: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fields_are_of_json(self) -> KinesisSource:
        if (self.value_format == "json") != bool(self.fields):
            msg = "fields: declare the members of json values, and of no others"
            raise ValueError(msg)
        return self

    @property
    def value_format(self) -> Literal["json", "text", "binary"]:
        """What records hold, declared or by default."""
        return self.value or ("json" if self.fields else "text")

    @property
    def where(self) -> str:
        """What is read, for a person."""
        return self.stream

    @property
    def time_column(self) -> str:
        """The lake name of the time at which Kinesis took the record in."""
        return self.rename.get(ARRIVAL_TIME, ARRIVAL_TIME)

    @property
    def can_be_followed(self) -> bool:
        """Shards are asked again and again."""
        return True

    def position_kind(self, kind: FeedKind) -> PositionKind:  # noqa: ARG002  these are streams
        """Records are numbered."""
        return PositionKind.OFFSETS

    @property
    def own_columns(self) -> tuple[str, ...]:
        """Names of the columns that no value has, the last ones."""
        own = {
            OTHER_FIELDS: self.value_format == "json" and self.undeclared == "keep",
            KEY: self.key != "ignore",
            SHARD: self.positions,
            SEQUENCE_NUMBER: self.positions,
            SUB_SEQUENCE_NUMBER: self.positions,
            ARRIVAL_TIME: True,
        }
        return tuple(name for name, is_there in own.items() if is_there)

    def problem(self) -> str | None:
        """Names that no columns can have, or that two would share."""
        from datalake_assets.core.schema import lake_names  # noqa: PLC0415  Arrow, and every command reads feeds

        try:
            lake_names((*self.fields, *self.own_columns), feed=self.stream, rename=self.rename)
        except InvalidFeed as error:
            return f"source.fields: {error.reason}"
        return None


class KinesisSettings(Settings):
    """Settings of Kinesis; credentials come by the AWS conventions only.

    Attributes:
        kinesis_endpoint: URL of a server that speaks Kinesis; unset: AWS, or what ``AWS_ENDPOINT_URL_KINESIS`` says.
        kinesis_region: Region of streams that are named without one; unset: that of the AWS conventions.
        kinesis_timeout_s: Seconds to wait for a connection or an answer, and for what must come to be seen.
    """

    kinesis_endpoint: str | None = None
    kinesis_region: str | None = None
    kinesis_timeout_s: Annotated[float, Field(gt=0)] = 30.0


def declared(feed: Feed) -> KinesisSource:
    """What a feed says of a stream.

    Raises:
        ConfigError: It reads something else.
    """
    source = feed.exported_from
    if isinstance(source, KinesisSource):
        return source
    raise ConfigError(f"feed {feed.name!r} reads {source.type}, not kinesis")


KINESIS = System(
    model=KinesisSource,
    connect="datalake_assets.sources.kinesis.kinesis:connect",
    extra="kinesis",
    settings=KinesisSettings,
    options=(
        FeedOption("--stream-name", "stream", "Name of the stream.", "STREAM", required=True),
        FeedOption("--region", "region", "Its region.  [default: that of the URL, or of AWS_REGION]", "REGION"),
        FeedOption(
            "--data",
            "value",
            "What records hold.  [default: json with --field, else text]",
            choices=("json", "text", "binary"),
        ),
        FeedOption(
            "--field",
            "fields",
            "A member of the messages' JSON bodies; may be repeated.  [default: bodies as they are]",
            "NAME=TYPE",
            shape="pairs",
        ),
        FeedOption(
            "--undeclared",
            "undeclared",
            "Members that no --field declares.  [default: keep]",
            choices=("keep", "ignore", "reject"),
        ),
        FeedOption(
            "--aggregated",
            "aggregated",
            "Records that the Kinesis Producer Library packed into one.  [default: split]",
            choices=("split", "split_all", "keep"),
        ),
        FeedOption("--rename", "rename", "Name of a column in the lake.", "OLD=NEW", shape="pairs"),
    ),
    object_field="stream",
    discovery="Add every stream of the region, records as they are.",
)

"""What Kafka declares of itself as a source: what a feed may say of a topic, its settings, its options.

Loaded wherever feeds are read, so nothing heavy is imported before the connection.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, SecretStr, model_validator

from datalake_assets.errors import ConfigError, InvalidFeed
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind, PositionKind, SystemSource
from datalake_assets.settings import Settings
from datalake_assets.sources.base import FeedOption, System
from datalake_assets.sources.field_types import OTHER_FIELDS, FieldType

__all__ = [
    "HEADERS",
    "KAFKA",
    "KEY",
    "OFFSET",
    "PARTITION",
    "TIMESTAMP",
    "TOMBSTONE",
    "KafkaSettings",
    "KafkaSource",
    "declared",
]

#: Columns of every feed of a topic, whatever its values are.
KEY, HEADERS, TOMBSTONE = "kafka_key", "kafka_headers", "kafka_tombstone"
PARTITION, OFFSET, TIMESTAMP = "kafka_partition", "kafka_offset", "kafka_timestamp"
#: Kafka: a topic's name has at most 249 of these characters (org.apache.kafka.common.internals.Topic).
_TOPIC = r"^[a-zA-Z0-9._-]{1,249}$"


class KafkaSource(SystemSource):
    """Messages of a Kafka topic, each landed once, by source partition and offset.

    Attributes:
        topic: The topic's name.
        value: What values are: ``json``, objects with the members that ``fields`` declares; ``text`` in UTF-8, or
            ``binary``, landed as they are in the column ``value``; ``avro`` or ``protobuf``, with the id of a schema in
            front, as Confluent's serializers write them, whose fields become columns. Default: ``json`` if fields are
            declared, else ``text``.
        fields: Types of the members of a JSON value, by their names.
        undeclared: What becomes of members that no field declares: they are landed together in the column
            ``other_fields``, as JSON; or left out; or their message goes to quarantine.
        subject: The registry's name of the schemas of values; default: the topic's, followed by ``-value``.
        key: What keys are: ``text``, ``binary`` or ``avro``, landed in the column ``kafka_key``; or left out.
        headers: Whether headers are landed, in the column ``kafka_headers``, in their order.
        tombstones: Whether messages without a value are landed, as rows that have a key and ``kafka_tombstone``; or
            left out.
        positions: Whether source partition and offset are landed, in the columns ``kafka_partition`` and
            ``kafka_offset``.
        rename: Column names in the lake by names at the source, where the lower-cased name cannot serve.
        isolation: ``read_committed``: messages of transactions that were aborted, or are under way, are not read.
        group: A consumer group whose offsets are set to what was landed, so that tools which show lag show it; nothing
            is ever read from them. None: none.
    """

    serves: ClassVar[frozenset[FeedKind]] = frozenset({FeedKind.STREAM})

    type: Literal["kafka"] = "kafka"
    topic: Annotated[str, Field(pattern=_TOPIC)]
    value: Literal["json", "text", "binary", "avro", "protobuf"] | None = None
    fields: dict[str, FieldType] = Field(default_factory=dict)
    undeclared: Literal["keep", "ignore", "reject"] = "keep"
    subject: Annotated[str, Field(min_length=1)] | None = None
    key: Literal["text", "binary", "avro", "ignore"] = "text"
    headers: bool = False
    tombstones: Literal["keep", "ignore"] = "keep"
    positions: bool = True
    rename: dict[str, str] = Field(default_factory=dict)
    isolation: Literal["read_committed", "read_uncommitted"] = "read_committed"
    group: Annotated[str, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _fields_are_of_json(self) -> KafkaSource:
        if (self.value_format == "json") != bool(self.fields):
            msg = "fields: declare the members of json values, and of no others"
            raise ValueError(msg)
        return self

    @property
    def value_format(self) -> Literal["json", "text", "binary", "avro", "protobuf"]:
        """What values are, declared or by default."""
        return self.value or ("json" if self.fields else "text")

    @property
    def has_registry(self) -> bool:
        """Whether a schema registry says what keys or values are."""
        return self.value_format in ("avro", "protobuf") or self.key == "avro"

    @property
    def where(self) -> str:
        """What is read, for a person."""
        return self.topic

    @property
    def time_column(self) -> str:
        """The lake name of a message's timestamp, which its producer or the broker set."""
        return self.rename.get(TIMESTAMP, TIMESTAMP)

    @property
    def can_be_followed(self) -> bool:
        """Brokers hand on messages as they come."""
        return True

    def position_kind(self, kind: FeedKind) -> PositionKind:  # noqa: ARG002  topics are streams
        """Messages are numbered."""
        return PositionKind.OFFSETS

    @property
    def position_columns(self) -> tuple[str, str] | None:
        """Partition and offset, if they are landed."""
        names = (self.rename.get(PARTITION, PARTITION), self.rename.get(OFFSET, OFFSET))
        return names if self.positions else None

    @property
    def own_columns(self) -> tuple[str, ...]:
        """Names of the columns that no value has, the last ones."""
        own = {
            OTHER_FIELDS: self.value_format == "json" and self.undeclared == "keep",
            KEY: self.key != "ignore",
            HEADERS: self.headers,
            TOMBSTONE: self.tombstones == "keep",
            PARTITION: self.positions,
            OFFSET: self.positions,
            TIMESTAMP: True,
        }
        return tuple(name for name, is_there in own.items() if is_there)

    def problem(self) -> str | None:
        """Names that no columns can have, or that two would share, as far as they are declared."""
        from datalake_assets.core.schema import lake_names  # noqa: PLC0415  Arrow, and every command reads feeds

        try:
            lake_names((*self.fields, *self.own_columns), feed=self.topic, rename=self.rename)
        except InvalidFeed as error:
            return f"source.fields: {error.reason}"
        return None


class KafkaSettings(Settings):
    """Settings of Kafka and its schema registry.

    Attributes:
        kafka_servers: Brokers to begin with: ``host:port``, separated by commas.
        kafka_security: How they are spoken to.
        kafka_sasl_mechanism: How a user is authenticated, where ``kafka_security`` says so.
        kafka_user: That user; of OAUTHBEARER the client's id.
        kafka_password: The user's password; of OAUTHBEARER the client's secret.
        kafka_token_url: Where OAUTHBEARER gets its tokens for a client's id and secret (OAuth's client credentials).
        kafka_token_scope: The scope that is asked for there.
        kafka_token_ca_file: PEM file of the authority that signed that server's certificate, if it is not a public one.
        kafka_ca_file: PEM file of the authority that signed the brokers' certificates, if it is not a public one.
        kafka_certificate_file: PEM file of the client's own certificate, where brokers ask for one.
        kafka_key_file: PEM file of its key.
        kafka_key_password: That file's password.
        kafka_timeout_s: Seconds to wait for a connection, for an answer, or for the next message that must be there.
        kafka_registry_url: The schema registry of values in Avro or Protobuf.
        kafka_registry_user: User for HTTP Basic authentication there.
        kafka_registry_password: That user's password.
        kafka_registry_ca_file: PEM file of the authority that signed its certificate, if it is not a public one.
    """

    kafka_servers: str | None = None
    kafka_security: Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"] = "plaintext"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = "PLAIN"
    kafka_user: str | None = None
    kafka_password: SecretStr | None = None
    kafka_token_url: str | None = None
    kafka_token_scope: str | None = None
    kafka_token_ca_file: str | None = None
    kafka_ca_file: str | None = None
    kafka_certificate_file: str | None = None
    kafka_key_file: str | None = None
    kafka_key_password: SecretStr | None = None
    kafka_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    kafka_registry_url: str | None = None
    kafka_registry_user: str | None = None
    kafka_registry_password: SecretStr | None = None
    kafka_registry_ca_file: str | None = None


def declared(feed: Feed) -> KafkaSource:
    """What a feed says of a topic.

    Raises:
        ConfigError: It reads something else.
    """
    source = feed.exported_from
    if isinstance(source, KafkaSource):
        return source
    raise ConfigError(f"feed {feed.name!r} reads {source.type}, not kafka")


KAFKA = System(
    model=KafkaSource,
    connect="datalake_assets.sources.kafka.kafka:connect",
    extra="kafka",
    settings=KafkaSettings,
    options=(
        FeedOption("--topic", "topic", "Name of the topic.", "TOPIC", required=True),
        FeedOption(
            "--value",
            "value",
            "What values are.  [default: json with --field, else text]",
            choices=("json", "text", "binary", "avro", "protobuf"),
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
        FeedOption("--key", "key", "What keys are.  [default: text]", choices=("text", "binary", "avro", "ignore")),
        FeedOption("--headers", "headers", "Whether headers are landed.  [default: false]", choices=("true", "false")),
        FeedOption(
            "--tombstones",
            "tombstones",
            "Messages without a value.  [default: keep]",
            choices=("keep", "ignore"),
        ),
        FeedOption("--rename", "rename", "Name of a column in the lake.", "OLD=NEW", shape="pairs"),
        FeedOption("--group", "group", "A consumer group that is told what was landed.", "GROUP"),
    ),
    object_field="topic",
    discovery="Add every topic, values as they are.",
)

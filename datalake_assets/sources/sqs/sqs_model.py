"""What SQS declares of itself as a source: what a feed may say of a queue, its settings, its options.

Loaded wherever feeds are read, so nothing heavy is imported before the connection.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from datalake_assets.errors import ConfigError, InvalidFeed
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import FeedKind, PositionKind, SystemSource
from datalake_assets.policies import MIB, Duration
from datalake_assets.settings import Settings
from datalake_assets.sources.base import FeedOption, System
from datalake_assets.sources.field_types import FieldType

__all__ = [
    "GROUP",
    "MESSAGE_ID",
    "OTHER_FIELDS",
    "SENT_AT",
    "SEQUENCE",
    "SQS",
    "SqsSettings",
    "SqsSource",
    "declared",
]

#: Columns of every feed of a queue, and of a FIFO queue; what a body has that no field declares.
MESSAGE_ID, SENT_AT = "message_id", "sent_at"
GROUP, SEQUENCE = "message_group_id", "sequence_number"
OTHER_FIELDS = "other_fields"
#: The one column of bodies that are not taken apart.
BODY = "body"
#: SQS keeps no message longer (SQS limit: MessageRetentionPeriod, 1,209,600 seconds).
LONGEST_RETENTION = timedelta(days=14)
#: SQS limit: a visibility timeout is at most 12 hours, a long poll at most 20 seconds.
LONGEST_VISIBILITY_S, LONGEST_POLL_S = 43_200, 20
#: SQS limit: a name has at most 80 characters; or a queue's URL.
_QUEUE = r"^([A-Za-z0-9_-]{1,75}(\.fifo)?|[A-Za-z0-9_-]{76,80}|https?://[^\s?#@]+/[A-Za-z0-9_.-]{1,80})$"


class SqsSource(SystemSource):
    """Messages of an SQS queue, each landed once and then deleted from the queue.

    Attributes:
        queue: The queue's name, or its URL. No other feed and no other consumer may read it: each would get a part.
        region: Its region; default: that of its URL, of the settings, of AWS's own conventions.
        fields: Types of the members of a body, which is a JSON object, by their names. None: bodies are landed as they
            are, in the column ``body``.
        undeclared: What becomes of members that no field declares: they are landed together in the column
            ``other_fields``, as JSON; or left out; or their message is poison.
        attributes: Message attributes that are landed as columns of text.
        rename: Column names in the lake by names at the source, where the lower-cased name cannot serve.
        identity: What tells messages apart: ``message``, the id that SQS gives each; ``deduplication``, of a FIFO
            queue, the sender's deduplication id and the content. Default: the latter where the sender gives such ids,
            and where one that is sent again is looked for in the right place (ADR 032); else the former.
        horizon: How long a message is remembered, from when it was sent. At least the queue's retention period;
            by default as long as SQS can keep one.
        batch_records: Messages that are landed together. More, where more are waiting: as many as there are.
        batch_bytes: Bytes of bodies that are landed together, at most; default: the feed's target size of files.
        batch_age_s: Seconds after which the messages that came are landed, however few; many times that while more are
            waiting than make a batch.
        idle_s: Seconds without a message after which a run is at its end.
        run_s: Seconds after which a run begins no other batch: messages may come without an end.
        visibility_s: Seconds for which messages that were received are hidden from others; extended while they are
            being landed. After a crash they come again after this time.
        receivers: Requests at once, under backlog.
        messages_per_s: Most messages a second; none for no limit.
        max_receives: Receptions of a message that cannot be decoded after which it is given up: moved to
            ``dead_letter_queue``, or deleted. It is in quarantine from the first one on. A queue with a redrive policy
            of its own, and no ``dead_letter_queue`` here, is left to that.
        dead_letter_queue: Where such messages go: a queue's name, or its URL.
    """

    serves: ClassVar[frozenset[FeedKind]] = frozenset({FeedKind.STREAM})
    has_backlog: ClassVar[bool] = True

    type: Literal["sqs"] = "sqs"
    queue: Annotated[str, Field(pattern=_QUEUE)]
    region: Annotated[str, Field(pattern=r"^[a-z0-9-]*$")] = ""
    fields: dict[str, FieldType] = Field(default_factory=dict)
    undeclared: Literal["keep", "ignore", "reject"] = "keep"
    attributes: tuple[str, ...] = ()
    rename: dict[str, str] = Field(default_factory=dict)
    identity: Literal["message", "deduplication"] | None = None
    horizon: Duration = LONGEST_RETENTION
    batch_records: Annotated[int, Field(ge=1, le=100_000)] = 50
    batch_bytes: Annotated[int, Field(ge=1, le=1024 * MIB)] | None = None
    batch_age_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    idle_s: Annotated[float, Field(gt=0, le=LONGEST_POLL_S)] = 2.0
    run_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    visibility_s: Annotated[int, Field(ge=1, le=LONGEST_VISIBILITY_S)] = 300
    receivers: Annotated[int, Field(ge=1, le=64)] = 4
    messages_per_s: Annotated[float, Field(gt=0)] | None = None
    max_receives: Annotated[int, Field(ge=1, le=1000)] = 3
    dead_letter_queue: Annotated[str, Field(pattern=_QUEUE)] | None = None

    @property
    def where(self) -> str:
        """What is read, for a person."""
        return self.queue.rpartition("/")[2]

    @property
    def is_fifo(self) -> bool:
        """Whether it is a FIFO queue, as its name says (SQS: the name of a FIFO queue ends so)."""
        return self.queue.endswith(".fifo")

    @property
    def time_column(self) -> str:
        """When a message was sent: the same however often it comes."""
        return SENT_AT

    @property
    def remembers(self) -> timedelta:
        """The horizon."""
        return self.horizon

    def position_kind(self, kind: FeedKind) -> PositionKind:  # noqa: ARG002  queues are streams
        """Messages are remembered one by one."""
        return PositionKind.IDS

    def reading(self, kind: FeedKind) -> str:  # noqa: ARG002  queues are streams
        """What a queue holds."""
        return "messages"

    @property
    def own_columns(self) -> tuple[str, ...]:
        """Names of the columns that no body has, the last ones."""
        other = (OTHER_FIELDS,) if self.fields and self.undeclared == "keep" else ()
        return (*other, *((GROUP, SEQUENCE) if self.is_fifo else ()), MESSAGE_ID, SENT_AT)

    @property
    def body_columns(self) -> tuple[str, ...]:
        """Names of the members and attributes that become columns, at the source."""
        return (*(self.fields or (BODY,)), *self.attributes)

    def problem(self) -> str | None:
        """Names that no columns can have, or that two would share; identities that the queue has not."""
        from datalake_assets.core.schema import lake_names  # noqa: PLC0415  Arrow, and every command reads feeds

        try:
            lake_names((*self.body_columns, *self.own_columns), feed=self.where, rename=self.rename)
        except InvalidFeed as error:
            return f"source.fields: {error.reason}"
        if self.identity == "deduplication" and not self.is_fifo:
            return "source.identity: only messages of FIFO queues have deduplication ids"
        return None


class SqsSettings(Settings):
    """Settings of SQS; credentials come by the AWS conventions only.

    Attributes:
        sqs_endpoint: URL of a server that speaks SQS; unset: AWS, or what ``AWS_ENDPOINT_URL_SQS`` says.
        sqs_region: Region of queues that are named without one; unset: that of the AWS conventions.
        sqs_timeout_s: Seconds to wait for a connection, or for an answer beyond the time of a long poll.
        sqs_unsigned: Whether requests go without a signature, and take no credentials: to a server that wants none.
    """

    sqs_endpoint: str | None = None
    sqs_region: str | None = None
    sqs_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    sqs_unsigned: bool = False


def declared(feed: Feed) -> SqsSource:
    """What a feed says of a queue.

    Raises:
        ConfigError: It reads something else.
    """
    source = feed.exported_from
    if isinstance(source, SqsSource):
        return source
    raise ConfigError(f"feed {feed.name!r} reads {source.type}, not sqs")


SQS = System(
    model=SqsSource,
    connect="datalake_assets.sources.sqs.sqs:connect",
    settings=SqsSettings,
    options=(
        FeedOption("--queue", "queue", "Name or URL of the queue.", "QUEUE", required=True),
        FeedOption("--region", "region", "Its region.  [default: that of the URL, or of AWS_REGION]", "REGION"),
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
        FeedOption("--attributes", "attributes", "Message attributes that become columns.", "NAME,NAME", shape="list"),
        FeedOption("--rename", "rename", "Name of a column in the lake.", "OLD=NEW", shape="pairs"),
        FeedOption(
            "--identity",
            "identity",
            "What tells messages apart.  [default: by queue]",
            choices=("message", "deduplication"),
        ),
        FeedOption("--batch-records", "batch_records", "Messages landed together.  [default: 50]", "N"),
        FeedOption("--batch-age", "batch_age_s", "Seconds that messages may wait for others.  [default: 30]", "S"),
        FeedOption("--max-receives", "max_receives", "Receptions of a poison message.  [default: 3]", "N"),
        FeedOption("--dead-letter-queue", "dead_letter_queue", "Where poison messages go at last.", "QUEUE"),
    ),
    object_field="queue",
    discovery="Add every queue of the region, bodies as they are.",
)

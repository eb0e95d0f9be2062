"""Messages to Arrow: which columns a feed's messages have, and how each body becomes a row, or is refused.

A body is taken apart by msgspec, member by member, so that a reason names the member at fault. Nothing is rounded and
nothing left out unless the feed says so: what no field declares is landed as JSON beside them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa

from datalake_assets.core.schema import lake_names, source_metadata
from datalake_assets.errors import InvalidFeed
from datalake_assets.feed import Feed
from datalake_assets.sources.fitting_rows import fitting_rows
from datalake_assets.sources.json_fields import JsonFields, MemberRefused
from datalake_assets.sources.sqs.sqs_model import (
    GROUP,
    MESSAGE_ID,
    OTHER_FIELDS,
    SENT_AT,
    SEQUENCE,
    declared,
)

__all__ = ["Decoded", "Message", "MessageLayout", "attribute_text", "envelope_of", "message_in"]

#: A sequence number has at most 38 digits here; SQS writes 20 of its 128 bits.
_SEQUENCE = pa.decimal128(38, 0)


@dataclass(slots=True)
class Message:
    """A message as it was received.

    Attributes:
        id: What SQS calls it.
        receipt: Of this reception: what deletes it.
        body: Its body.
        sent_at: When it was sent.
        receives: How often it was received, this time included.
        group: Its group; empty outside of FIFO queues.
        deduplication_id: The sender's id of it; empty outside of FIFO queues.
        sequence: Its number in its queue; empty outside of FIFO queues.
        attributes: Its attributes by name, as SQS has them: ``DataType``, and a ``StringValue`` or ``BinaryValue``.
    """

    id: str
    receipt: str
    body: str
    sent_at: datetime
    receives: int
    group: str = ""
    deduplication_id: str = ""
    sequence: str = ""
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def content(self) -> bytes:
        """The body's bytes: UTF-8, but for what a server gives that looks at no text."""
        return self.body.encode("utf-8", "surrogatepass")

    def says_the_same_as(self, other: Message) -> bool:
        """Whether a message of the same identity is a repetition, and no other content under the same id."""
        return self.body == other.body and self.attributes == other.attributes


def envelope_of(message: Message) -> str:
    """All of a message but its body and its reception, as quarantine keeps it."""
    kept = {"id": message.id, "sent_at": message.sent_at.isoformat(), "group": message.group}
    kept |= {"deduplication_id": message.deduplication_id, "sequence": message.sequence}
    attributes = {
        name: {
            key: base64.b64encode(value).decode() if isinstance(value, bytes) else value for key, value in each.items()
        }
        for name, each in message.attributes.items()
    }
    return json.dumps({**kept, "attributes": attributes} if attributes else kept, separators=(",", ":"))


def message_in(envelope: str, body: bytes) -> Message:
    """The inverse of `envelope_of`.

    Raises:
        ValueError: It is no envelope.
    """
    try:
        kept = json.loads(envelope)
        attributes = {
            name: {key: base64.b64decode(value) if key == "BinaryValue" else value for key, value in each.items()}
            for name, each in kept.pop("attributes", {}).items()
        }
        sent_at = datetime.fromisoformat(kept.pop("sent_at"))
        text = body.decode("utf-8", "surrogatepass")
        return Message(receipt="", body=text, sent_at=sent_at, receives=0, attributes=attributes, **kept)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not the envelope of a message: {error!r}") from error


@dataclass(frozen=True, slots=True)
class Decoded:
    """Some messages as rows.

    Attributes:
        rows: A row for each that is one, in their order.
        messages: These.
        poison: The others, and why each is none.
    """

    rows: pa.RecordBatch
    messages: list[Message]
    poison: list[tuple[Message, str]]


class MessageLayout:
    """The columns of a feed's messages.

    Args:
        feed: A feed of a queue.

    Attributes:
        schema: Fields and attributes under their names in the lake, then what no body has; times in UTC.

    Raises:
        InvalidFeed: The feed's time column is none of these, or no time.
    """

    def __init__(self, feed: Feed) -> None:
        self._source = source = declared(feed)
        self._fields = JsonFields(source.fields, undeclared=source.undeclared) if source.fields else None
        self.schema = pa.schema([*self._body_columns(feed), *(_OWN[name] for name in source.own_columns)])
        time_ = feed.row_time or SENT_AT
        if time_ not in self.schema.names or not pa.types.is_timestamp(self.schema.field(time_).type):
            raise InvalidFeed(feed.name, f"time_column: {time_!r} is no column of times; declare it 'timestamptz'")

    def _body_columns(self, feed: Feed) -> list[pa.Field]:
        source = self._source
        names = lake_names((*source.body_columns, *source.own_columns), feed=feed.name, rename=source.rename)
        types = self._fields.columns if self._fields else [(pa.string(), False)]
        types += [(pa.string(), True)] * len(source.attributes)
        return [
            pa.field(name, type_, nullable=nullable, metadata=source_metadata(at_source))
            for name, at_source, (type_, nullable) in zip(names, source.body_columns, types, strict=False)
        ]

    def decoded(self, messages: Sequence[Message]) -> Decoded:
        """Takes messages apart."""
        rows: list[tuple[Any, ...]] = []
        kept: list[Message] = []
        poison: list[tuple[Message, str]] = []
        for message in messages:
            try:
                rows.append(self._row(message))
                kept.append(message)
            except MemberRefused as error:
                poison.append((message, str(error)))
        batch, misfits = fitting_rows(rows, self.schema)
        poison += [(kept[number], reason) for number, reason in misfits.items()]
        return Decoded(batch, [each for number, each in enumerate(kept) if number not in misfits], poison)

    def _row(self, message: Message) -> tuple[Any, ...]:
        source = self._source
        values, other = self._fields.values(message.content) if self._fields else ([message.body], None)
        attributes = [attribute_text(message.attributes.get(name)) for name in source.attributes]
        own = {
            OTHER_FIELDS: other,
            GROUP: message.group,
            SEQUENCE: _sequence(message.sequence) if source.is_fifo else None,
            MESSAGE_ID: message.id,
            SENT_AT: message.sent_at,
        }
        return (*values, *attributes, *(own[name] for name in source.own_columns))


def _sequence(text: str) -> Decimal | None:
    try:
        return Decimal(text) if text else None
    except ArithmeticError as error:
        raise MemberRefused(f"its sequence number {text!r} is no number") from error


_OWN: Mapping[str, pa.Field] = {
    OTHER_FIELDS: pa.field(OTHER_FIELDS, pa.string()),
    GROUP: pa.field(GROUP, pa.string()),
    SEQUENCE: pa.field(SEQUENCE, _SEQUENCE),
    MESSAGE_ID: pa.field(MESSAGE_ID, pa.string(), nullable=False),
    SENT_AT: pa.field(SENT_AT, pa.timestamp("ms", "UTC"), nullable=False),
}


def attribute_text(attribute: Mapping[str, Any] | None) -> str | None:
    """An attribute as a column has it: its text, or of bytes base64; None if the message has it not."""
    if attribute is None:
        return None
    text = attribute.get("StringValue")
    return text if text is not None else base64.b64encode(attribute.get("BinaryValue", b"")).decode()

"""Messages to Arrow: which columns a feed's messages have, and how each body becomes a row, or is refused.

A body is taken apart by msgspec, member by member, so that a reason names the member at fault. Nothing is rounded and
nothing left out unless the feed says so: what no field declares is landed as JSON beside them.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any

import msgspec
import pyarrow as pa

from datalake_assets.core.schema import lake_names, source_metadata
from datalake_assets.errors import InvalidFeed
from datalake_assets.feed import Feed
from datalake_assets.sources.json_members import members_of
from datalake_assets.sources.sqs.sqs_model import (
    GROUP,
    MESSAGE_ID,
    OTHER_FIELDS,
    SENT_AT,
    SEQUENCE,
    declared,
)

__all__ = ["Decoded", "Message", "MessageLayout"]

_INT = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
_LONG = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
#: Seconds of the years 1 to 9999, which Python, pandas and ISO 8601 text all hold.
_SECONDS = Annotated[int, msgspec.Meta(ge=-62_135_596_800, le=253_402_300_799)]
_MILLIS = Annotated[int, msgspec.Meta(ge=-62_135_596_800_000, le=253_402_300_799_999)]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: More digits of a second than a microsecond has, unless they are zeros.
_FINER = re.compile(r"[.,]\d{6}\d*[1-9]")
#: A sequence number has at most 38 digits here; SQS writes 20 of its 128 bits.
_SEQUENCE = pa.decimal128(38, 0)
_NULL = b"null"


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
        self._fields = {name: _Field.of(name, text) for name, text in source.fields.items()}
        self.schema = pa.schema([*self._body_columns(feed), *(_OWN[name] for name in source.own_columns)])
        time_ = feed.row_time or SENT_AT
        if time_ not in self.schema.names or not pa.types.is_timestamp(self.schema.field(time_).type):
            raise InvalidFeed(feed.name, f"time_column: {time_!r} is no column of times; declare it 'timestamptz'")

    def _body_columns(self, feed: Feed) -> list[pa.Field]:
        source = self._source
        names = lake_names((*source.body_columns, *source.own_columns), feed=feed.name, rename=source.rename)
        types = [(each.arrow, each.nullable) for each in self._fields.values()] or [(pa.string(), False)]
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
            except _Refused as error:
                poison.append((message, str(error)))
        try:
            return Decoded(self._batch(rows), kept, poison)
        except _UNFIT:
            return self._sorted_out(rows, kept, poison)

    def _sorted_out(
        self, rows: Sequence[tuple[Any, ...]], messages: Sequence[Message], poison: list[tuple[Message, str]]
    ) -> Decoded:
        """Arrow says that a value does not fit its column, and not which."""
        fitting = []
        for row, message in zip(rows, messages, strict=True):
            reason = next(filter(None, map(_misfit, row, self.schema)), "")
            if reason:
                poison.append((message, reason))
            else:
                fitting.append((row, message))
        return Decoded(self._batch([row for row, _ in fitting]), [message for _, message in fitting], poison)

    def _batch(self, rows: Sequence[tuple[Any, ...]]) -> pa.RecordBatch:
        columns = zip(*rows, strict=True) if rows else [()] * len(self.schema)
        arrays = [pa.array(values, each.type) for values, each in zip(columns, self.schema, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _row(self, message: Message) -> tuple[Any, ...]:
        source = self._source
        values, other = self._members(message.body) if self._fields else ([message.body], None)
        attributes = [_attribute_text(message.attributes.get(name)) for name in source.attributes]
        own = {
            OTHER_FIELDS: other,
            GROUP: message.group,
            SEQUENCE: _sequence(message.sequence) if source.is_fifo else None,
            MESSAGE_ID: message.id,
            SENT_AT: message.sent_at,
        }
        return (*values, *attributes, *(own[name] for name in source.own_columns))

    def _members(self, body: str) -> tuple[list[Any], str | None]:
        """The values of the declared members, and the others as JSON; None if there are none."""
        try:
            members = members_of(body.encode())
        except ValueError as error:
            raise _Refused(f"the body is not a JSON object: {error}") from error
        values = [each.value(members.pop(name, None)) for name, each in self._fields.items()]
        return values, self._others(members) if members else None

    def _others(self, members: Mapping[str, msgspec.Raw]) -> str | None:
        if self._source.undeclared == "ignore":
            return None
        if self._source.undeclared == "reject":
            raise _Refused(f"the feed declares no field {min(members)!r}")
        parts = (f"{msgspec.json.encode(name).decode()}:{_text(raw)}" for name, raw in members.items())
        return f"{{{','.join(parts)}}}"


class _Refused(ValueError):
    """A message is not what the feed says of it."""


_UNFIT = (pa.ArrowException, ValueError, TypeError, OverflowError)


def _misfit(value: Any, column: pa.Field) -> str:
    try:
        pa.array([value], column.type)
    except _UNFIT as error:
        return f"{column.name}: {error}"
    return ""


def _sequence(text: str) -> Decimal | None:
    try:
        return Decimal(text) if text else None
    except ArithmeticError as error:
        raise _Refused(f"its sequence number {text!r} is no number") from error


_OWN: Mapping[str, pa.Field] = {
    OTHER_FIELDS: pa.field(OTHER_FIELDS, pa.string()),
    GROUP: pa.field(GROUP, pa.string()),
    SEQUENCE: pa.field(SEQUENCE, _SEQUENCE),
    MESSAGE_ID: pa.field(MESSAGE_ID, pa.string(), nullable=False),
    SENT_AT: pa.field(SENT_AT, pa.timestamp("ms", "UTC"), nullable=False),
}


@dataclass(frozen=True, slots=True)
class _Field:
    """A declared member.

    Attributes:
        name: Its name in bodies.
        arrow: Its column's type.
        nullable: Whether bodies may lack it, or have null.
        decoder: Decodes its value, or null.
        convert: Makes of that what Arrow takes.
    """

    name: str
    arrow: pa.DataType
    nullable: bool
    decoder: Any
    convert: Callable[[Any], Any] | None = None

    @classmethod
    def of(cls, name: str, text: str) -> _Field:
        """The field of a type that the model has checked."""
        kind, _, is_needed = text.partition(" ")
        if kind.startswith("decimal"):
            precision, scale = map(int, kind.removeprefix("decimal(").removesuffix(")").split(","))
            return cls(name, pa.decimal128(precision, scale), not is_needed, _decoder(Decimal), _finite)
        arrow, wire, convert = _KINDS[kind]
        return cls(name, arrow, not is_needed, _decoder(wire), convert)

    def value(self, raw: msgspec.Raw | None) -> Any:
        """Its value in a body that has this text for it.

        Raises:
            ValueError: It is none of this type.
        """
        if raw is None or bytes(raw) == _NULL:
            if not self.nullable:
                raise _Refused(f"{self.name}: it has no value, and is declared 'not null'")
            return None
        try:
            found = self.decoder.decode(raw)
            return found if self.convert is None else self.convert(found)
        except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError) as error:
            raise _Refused(f"{self.name}: {error}") from error


def _decoder(wire: Any) -> Any:
    return msgspec.json.Decoder(wire)


def _text(raw: msgspec.Raw) -> str:
    return bytes(raw).decode()


def _attribute_text(attribute: Mapping[str, Any] | None) -> str | None:
    """An attribute as a column has it: its text, or of bytes base64; None if the message has it not."""
    if attribute is None:
        return None
    text = attribute.get("StringValue")
    return text if text is not None else base64.b64encode(attribute.get("BinaryValue", b"")).decode()


def _finite(value: Decimal) -> Decimal:
    if not value.is_finite():
        raise ValueError(f"{value} is no number")
    return value


def _moment(text: str) -> datetime:
    if _FINER.search(text):
        raise ValueError(f"{text!r} is finer than a microsecond")
    return msgspec.convert(text, datetime)


def _utc(text: str) -> datetime:
    """Times without a zone are UTC."""
    found = _moment(text)
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def _local(text: str) -> datetime:
    found = _moment(text)
    if found.tzinfo:
        raise ValueError(f"{text!r} has a time zone: declare it 'timestamptz'")
    return found


def _time(text: str) -> time:
    if _FINER.search(text):
        raise ValueError(f"{text!r} is finer than a microsecond")
    found = msgspec.convert(text, time)
    if found.tzinfo:
        raise ValueError(f"{text!r} has a time zone")
    return found


def _since(unit: timedelta) -> Callable[[int], datetime]:
    return lambda number: _EPOCH + number * unit


_UTC = pa.timestamp("us", "UTC")
#: By type: the column, what msgspec decodes, and what is made of that.
_KINDS: Mapping[str, tuple[pa.DataType, Any, Callable[[Any], Any] | None]] = {
    "boolean": (pa.bool_(), bool, None),
    "int": (pa.int32(), _INT, None),
    "long": (pa.int64(), _LONG, None),
    "double": (pa.float64(), float, None),
    "string": (pa.string(), str, None),
    "binary": (pa.binary(), bytes, None),
    "date": (pa.date32(), date, None),
    "time": (pa.time64("us"), str, _time),
    "timestamp": (pa.timestamp("us"), str, _local),
    "timestamptz": (_UTC, str, _utc),
    "epoch_s": (_UTC, _SECONDS, _since(timedelta(seconds=1))),
    "epoch_ms": (_UTC, _MILLIS, _since(timedelta(milliseconds=1))),
    "json": (pa.string(), msgspec.Raw, _text),
}

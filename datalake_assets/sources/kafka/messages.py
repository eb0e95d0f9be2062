"""Messages as Kafka has them, to Arrow: a row for each, or the reason why it is none.

What a value holds is one of `ValueFormat`'s matters; around it stand the columns that every message has. A message in
quarantine is kept whole, as JSON, so that it can be decoded again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec
import pyarrow as pa

from datalake_assets.core.batches import RejectedRow, SourceBatch
from datalake_assets.core.schema import lake_names, source_metadata
from datalake_assets.errors import InvalidFeed
from datalake_assets.feed import Feed
from datalake_assets.sources.field_types import OTHER_FIELDS
from datalake_assets.sources.fitting_rows import fitting_rows
from datalake_assets.sources.kafka.kafka_model import (
    HEADERS,
    KEY,
    OFFSET,
    PARTITION,
    TIMESTAMP,
    TOMBSTONE,
    KafkaSource,
    declared,
)
from datalake_assets.sources.message_values import (
    Refused,
    ValueFormat,
    kept_bytes,
    plain_format,
    restored_bytes,
    text_of,
)

__all__ = ["ColumnsChanged", "KafkaMessage", "KeptMessage", "MessageLayout", "plain_values"]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
#: Kafka's type of timestamp of a message that has none (confluent_kafka.TIMESTAMP_NOT_AVAILABLE).
_NO_TIMESTAMP = 0
#: What a message says that was sent without one (Kafka, ``RecordBatch.NO_TIMESTAMP``); producers send nothing below 0.
_NONE_SENT = -1


class ColumnsChanged(Exception):
    """A message has a field that was registered after the read began."""


class KafkaMessage(Protocol):
    """A message, as confluent-kafka gives it."""

    def partition(self) -> int: ...  # noqa: D102
    def offset(self) -> int: ...  # noqa: D102
    def timestamp(self) -> tuple[int, int]: ...  # noqa: D102
    def key(self) -> bytes | None: ...  # noqa: D102
    def value(self) -> bytes | None: ...  # noqa: D102
    def headers(self) -> Sequence[tuple[str, bytes | None]] | None: ...  # noqa: D102


def plain_values(source: KafkaSource) -> ValueFormat:
    """The format of values that need no registry."""
    kind = source.value_format
    if kind not in ("json", "text", "binary"):
        raise AssertionError(kind)
    return plain_format(kind, source.fields, source.undeclared)


class MessageLayout:
    """The columns of a feed's messages, and how one becomes a row.

    Args:
        feed: A feed of a topic.
        value: What its values are.
        key: What its keys are: the one column of them; None for the text or the bytes themselves.

    Attributes:
        schema: Columns of the value under their names in the lake, then what every message has; times in UTC.

    Raises:
        InvalidFeed: Two columns would share a name; the feed's time column is none of these, or no time.
    """

    def __init__(self, feed: Feed, value: ValueFormat, key: ValueFormat | None = None) -> None:
        self._source = source = declared(feed)
        self._value, self._key = value, key
        columns = [*value.columns, *(_OWN[name] for name in source.own_columns if name != OTHER_FIELDS)]
        if source.key != "ignore":
            key_type = key.columns[0].type if key else pa.binary() if source.key == "binary" else pa.string()
            columns[[each.name for each in columns].index(KEY)] = pa.field(KEY, key_type)
        names = lake_names([each.name for each in columns], feed=feed.name, rename=source.rename)
        self.schema = pa.schema(
            each.with_name(name).with_metadata(source_metadata(each.name))
            for name, each in zip(names, columns, strict=True)
        )
        time_ = feed.row_time or source.time_column
        if time_ not in self.schema.names or not pa.types.is_timestamp(self.schema.field(time_).type):
            raise InvalidFeed(feed.name, f"time_column: {time_!r} is no column of times; declare it 'timestamptz'")

    def batch(self, messages: Sequence[KafkaMessage]) -> SourceBatch:
        """Messages as rows, those that are none as rejected.

        Raises:
            ColumnsChanged: One has columns that are not known yet.
        """
        return self._at_once(messages) or self._one_by_one(messages)

    def _at_once(self, messages: Sequence[KafkaMessage]) -> SourceBatch | None:
        """All messages as rows, if none is left out or refused; None if each has to be looked at."""
        values = [each.value() for each in messages]
        source = self._source
        if not values or None in values or self._key is not None:
            return None
        try:
            columns = self._value.arrays([each for each in values if each is not None])
            if columns is None:
                return None
            keys = pa.array([each.key() for each in messages], pa.binary()) if source.key != "ignore" else None
            own = {
                KEY: keys.cast(pa.string()) if keys is not None and source.key == "text" else keys,
                HEADERS: pa.array(map(_headers, messages), _OWN[HEADERS].type) if source.headers else None,
                TOMBSTONE: pa.repeat(False, len(messages)),
                PARTITION: pa.array([each.partition() for each in messages], pa.int32()),
                OFFSET: pa.array([each.offset() for each in messages], pa.int64()),
                TIMESTAMP: pa.array(_moments(messages), _OWN[TIMESTAMP].type),
            }
        except pa.ArrowException:  # a text that is none in UTF-8
            return None
        columns += [own[name] for name in source.own_columns if name != OTHER_FIELDS]
        rows = pa.RecordBatch.from_arrays(columns, schema=self.schema)
        return SourceBatch(rows, own[PARTITION], own[OFFSET])

    def _one_by_one(self, messages: Sequence[KafkaMessage]) -> SourceBatch:
        rows: list[Sequence[Any]] = []
        kept: list[KafkaMessage] = []
        refused: list[RejectedRow] = []
        for message in messages:
            try:
                row = self._row(message)
            except Refused as error:
                refused.append(_rejected(message, str(error)))
                continue
            if row is not None:
                rows.append(row)
                kept.append(message)
        batch, misfits = fitting_rows(rows, self.schema)
        refused += [_rejected(kept[number], reason) for number, reason in misfits.items()]
        landed = [each for number, each in enumerate(kept) if number not in misfits]
        partitions = pa.array([each.partition() for each in landed], pa.int32())
        offsets = pa.array([each.offset() for each in landed], pa.int64())
        return SourceBatch(batch, partitions, offsets, tuple(refused))

    def _row(self, message: KafkaMessage) -> Sequence[Any] | None:
        """A message's values in the order of the columns; None if it is left out."""
        value, source = message.value(), self._source
        if value is not None:
            values = self._value.values(value)
        elif source.tombstones == "keep":
            values = (None,) * len(self._value.columns)
        else:
            return None
        row = [*values]
        if source.key != "ignore":
            row.append(self._key_of(message))
        if source.headers:
            row.append(_headers(message))
        if source.tombstones == "keep":
            row.append(value is None)
        if source.positions:
            row += (message.partition(), message.offset())
        row += _moments([message])
        return row

    def _key_of(self, message: KafkaMessage) -> Any:
        key = message.key()
        if key is None or self._source.key == "binary":
            return key
        return self._key.values(key)[0] if self._key else text_of(key, "the key")


_OWN: Mapping[str, pa.Field] = {
    KEY: pa.field(KEY, pa.string()),
    HEADERS: pa.field(HEADERS, pa.list_(pa.struct({"name": pa.string(), "value": pa.binary()}))),
    TOMBSTONE: pa.field(TOMBSTONE, pa.bool_(), nullable=False),
    PARTITION: pa.field(PARTITION, pa.int32(), nullable=False),
    OFFSET: pa.field(OFFSET, pa.int64(), nullable=False),
    TIMESTAMP: pa.field(TIMESTAMP, pa.timestamp("ms", "UTC")),
}


def _headers(message: KafkaMessage) -> list[dict[str, Any]]:
    return [{"name": name, "value": each} for name, each in message.headers() or ()]


def _moments(messages: Sequence[KafkaMessage]) -> list[int | None]:
    """The messages' timestamps in milliseconds since 1970; None of those that have none."""
    return [
        None if kind == _NO_TIMESTAMP or milliseconds == _NONE_SENT else milliseconds
        for kind, milliseconds in [message.timestamp() for message in messages]
    ]


def _rejected(message: KafkaMessage, reason: str) -> RejectedRow:
    return RejectedRow(KeptMessage.of(message).to_json(), reason, f"{message.partition()}:{message.offset()}")


@dataclass(frozen=True, slots=True)
class KeptMessage:
    """A message as quarantine keeps it; is one itself."""

    document: Mapping[str, Any]

    @classmethod
    def of(cls, message: KafkaMessage) -> KeptMessage:
        """Keeps a message."""
        return cls(
            {
                "partition": message.partition(),
                "offset": message.offset(),
                "timestamp": list(message.timestamp()),
                **kept_bytes("key", message.key()),
                **kept_bytes("value", message.value()),
                "headers": [[name, *kept_bytes("value", value).items()] for name, value in message.headers() or ()],
            }
        )

    @classmethod
    def from_json(cls, raw: bytes) -> KeptMessage:
        """The inverse of `to_json`.

        Raises:
            ValueError: It is none.
        """
        document = msgspec.json.decode(raw)
        try:
            kept = cls(document)
            kept.partition(), kept.offset(), kept.timestamp(), kept.key(), kept.value(), kept.headers()
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ValueError("it is no message of a topic") from error
        return kept

    def to_json(self) -> bytes:
        """One line of JSON; what is no text is in base64."""
        return msgspec.json.encode(self.document)

    def partition(self) -> int:
        """Implements `KafkaMessage`."""
        return int(self.document["partition"])

    def offset(self) -> int:
        """Implements `KafkaMessage`."""
        return int(self.document["offset"])

    def timestamp(self) -> tuple[int, int]:
        """Implements `KafkaMessage`."""
        kind, milliseconds = self.document["timestamp"]
        return int(kind), int(milliseconds)

    def key(self) -> bytes | None:
        """Implements `KafkaMessage`."""
        return restored_bytes("key", self.document)

    def value(self) -> bytes | None:
        """Implements `KafkaMessage`."""
        return restored_bytes("value", self.document)

    def headers(self) -> Sequence[tuple[str, bytes | None]]:
        """Implements `KafkaMessage`."""
        return [(name, restored_bytes("value", dict(parts))) for name, *parts in self.document["headers"]]

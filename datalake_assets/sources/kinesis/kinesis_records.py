"""Records as Kinesis has them, to Arrow: a row for each, or for each in an aggregated one, or why it is none.

A row's offset is made of two numbers: the sequence number of its record, of up to 186 bits, and, in the lowest 24, its
place within that record, from 1 on. So the rows of an aggregated record, which may belong to several days, are told
apart as any others are. An offset whose lowest bits are zero is no row's: it stands for the end of a closed shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any

import msgspec
import pyarrow as pa

from datalake_assets.core.batches import RejectedRow, SourceBatch
from datalake_assets.core.position import SourcePartition, row_position
from datalake_assets.core.schema import lake_names, source_metadata
from datalake_assets.errors import InvalidFeed
from datalake_assets.feed import Feed
from datalake_assets.sources.field_types import OTHER_FIELDS
from datalake_assets.sources.fitting_rows import fitting_rows
from datalake_assets.sources.kinesis.aggregated_records import MAGIC, split
from datalake_assets.sources.kinesis.kinesis_model import (
    ARRIVAL_TIME,
    KEY,
    SEQUENCE_NUMBER,
    SHARD,
    SUB_SEQUENCE_NUMBER,
    declared,
)
from datalake_assets.sources.message_values import Refused, kept_bytes, plain_format, restored_bytes

__all__ = ["RecordLayout", "StreamRecord", "after_record", "end_of_shard", "first_of", "is_end", "record_of"]

#: Bits of a place within a record. A record of 10 MiB (Kinesis limit) has no more than 1.8 million others in it: each
#: takes six bytes.
_PLACE_BITS = 24
_LAST_PLACE = (1 << _PLACE_BITS) - 1
_LAST_HASH_KEY = 2**128 - 1
#: The Kinesis Client Library passes over all records of such an aggregate, as the Producer Library sends them again.
MISPLACED = "it was packed with records of other shards, and its producer sends it again; see 'aggregated'"
_ALL: Mapping[SourcePartition, int] = MappingProxyType({})
_ANY: Mapping[str, tuple[int, int]] = MappingProxyType({})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def first_of(sequence_number: int) -> int:
    """The offset of a record's first row."""
    return sequence_number << _PLACE_BITS | 1


def after_record(sequence_number: int) -> int:
    """The next offset, where all rows of a record were read."""
    return sequence_number << _PLACE_BITS | _LAST_PLACE


def end_of_shard(ending_sequence_number: int) -> int:
    """The next offset of a closed shard that was read to its end."""
    return ending_sequence_number + 1 << _PLACE_BITS


def is_end(offset: int) -> bool:
    """Whether a next offset says that its shard was read to its end."""
    return offset > 0 and not offset & _LAST_PLACE


def record_of(offset: int) -> int:
    """The sequence number of the record that a row is of."""
    return offset >> _PLACE_BITS


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """A record, or one that was packed into it.

    Attributes:
        shard: Its shard's id.
        sequence_number: Kinesis's number of the record.
        key: Its partition key.
        arrived_ms: When Kinesis took the record in, in milliseconds since 1970; None if it does not say.
        data: What it holds.
        place: Of one that was packed into another: which it is, from 0 on. None of any other.
    """

    shard: str
    sequence_number: int
    key: str
    arrived_ms: int | None
    data: bytes
    place: int | None = None

    @classmethod
    def of(cls, shard: str, found: Mapping[str, Any]) -> StreamRecord:
        """A record by the names of the API."""
        arrived = found.get("ApproximateArrivalTimestamp")
        milliseconds = None if arrived is None else (arrived - _EPOCH) // _MILLISECOND
        return cls(shard, int(found["SequenceNumber"]), found["PartitionKey"], milliseconds, found["Data"])

    @property
    def offset(self) -> int:
        """Its row's."""
        return first_of(self.sequence_number) + (self.place or 0)

    @property
    def is_aggregate(self) -> bool:
        """Whether several were packed into it."""
        return self.place is None and self.data.startswith(MAGIC)

    def to_json(self, *, misplaced: bool = False) -> bytes:
        """One line of JSON, for quarantine: all that it is; what is no text is in base64.

        Args:
            misplaced: It was packed into one that came to another shard than it belongs to.
        """
        document = {
            "shard": self.shard,
            "sequence_number": str(self.sequence_number),
            "sub_sequence_number": self.place,
            "key": self.key,
            "arrived_ms": self.arrived_ms,
            **kept_bytes("data", self.data),
        }
        return msgspec.json.encode(document | ({"misplaced": True} if misplaced else {}))

    @classmethod
    def from_json(cls, raw: bytes) -> tuple[StreamRecord, bool]:
        """The inverse of `to_json`: the record, and whether it was misplaced.

        Raises:
            ValueError: It is none.
        """
        try:
            found = msgspec.json.decode(raw)
            data, place = restored_bytes("data", found) or b"", found["sub_sequence_number"]
            shard, number, arrived = str(found["shard"]), int(found["sequence_number"]), found["arrived_ms"]
            record = cls(shard, number, str(found["key"]), arrived, data, place)
            return record, bool(found.get("misplaced"))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise ValueError("it is no record of a stream") from error


class RecordLayout:
    """The columns of a feed's records, and how one becomes a row, or several.

    Args:
        feed: A feed of a stream.

    Attributes:
        schema: Columns of the value under their names in the lake, then what every record has; times in UTC.

    Raises:
        InvalidFeed: Two columns would share a name; the feed's time column is none of these, or no time.
    """

    def __init__(self, feed: Feed) -> None:
        self._source = source = declared(feed)
        self._value = plain_format(source.value_format, source.fields, source.undeclared)
        self._own = [name for name in source.own_columns if name != OTHER_FIELDS]
        columns = [*self._value.columns, *(_OWN[name] for name in self._own)]
        names = lake_names([each.name for each in columns], feed=feed.name, rename=source.rename)
        self.schema = pa.schema(
            each.with_name(name).with_metadata(source_metadata(each.name))
            for name, each in zip(names, columns, strict=True)
        )
        time_ = feed.row_time or source.time_column
        if time_ not in self.schema.names or not pa.types.is_timestamp(self.schema.field(time_).type):
            raise InvalidFeed(feed.name, f"time_column: {time_!r} is no column of times; declare it 'timestamptz'")

    def batch(
        self,
        records: Sequence[StreamRecord],
        starts: Mapping[SourcePartition, int] = _ALL,
        hash_keys: Mapping[str, tuple[int, int]] = _ANY,
    ) -> SourceBatch:
        """Records as rows, those that are none as rejected.

        Args:
            records: In the order of their numbers within each shard.
            starts: The first offset that is wanted, by shard; of others all are.
            hash_keys: The first and the last hash key that a shard takes, by its id; of others all.
        """
        refused: list[RejectedRow] = []
        wanted = [each for each in records if after_record(each.sequence_number) > starts.get(each.shard, 0)]
        found = self._singles(wanted, hash_keys, refused)
        singles = [each for each in found if each.offset >= starts.get(each.shard, 0)]
        columns = self._at_once(singles)
        if columns is None:
            rows, landed = self._one_by_one(singles, refused)
        else:
            rows, landed = pa.RecordBatch.from_arrays(columns, schema=self.schema), singles
        shards = pa.array([each.shard for each in landed], pa.string())
        offsets = pa.array([str(each.offset) for each in landed], pa.string())
        return SourceBatch(rows, shards, offsets, tuple(refused))

    def again(self, raws: Sequence[bytes]) -> SourceBatch:
        """Records that went to quarantine, as `batch` makes rows of them.

        A damaged aggregate becomes one row if the feed takes it as it is, and stays where it is otherwise: one line of
        quarantine stands for one row.
        """
        kept, stay = [], []
        for raw in raws:
            try:
                record, is_misplaced = StreamRecord.from_json(raw)
            except ValueError as error:
                stay.append(RejectedRow(raw, str(error), ""))
                continue
            if record.is_aggregate and self._source.aggregated != "keep":
                stay.append(_rejected(record, "it is an aggregate, and one row can come of it at most"))
            elif is_misplaced and self._source.aggregated == "split":
                stay.append(_rejected(record, MISPLACED, misplaced=True))
            else:
                kept.append(record)
        batch = self.batch(kept)
        return SourceBatch(batch.rows, batch.source_partitions, batch.source_offsets, (*batch.rejected, *stay))

    def _singles(
        self, records: Sequence[StreamRecord], hash_keys: Mapping[str, tuple[int, int]], refused: list[RejectedRow]
    ) -> Iterator[StreamRecord]:
        """The records, and instead of aggregated ones those in them."""
        for record in records:
            if self._source.aggregated == "keep" or not record.is_aggregate:
                yield record
                continue
            try:
                inner = split(record.data, most=_LAST_PLACE - 1)
            except ValueError as error:
                refused.append(_rejected(record, f"it is a damaged aggregate: {error}"))
                continue
            singles = [replace(record, key=each.key, data=each.data, place=at) for at, each in enumerate(inner)]
            first, last = hash_keys.get(record.shard, (0, _LAST_HASH_KEY))
            if self._source.aggregated == "split" and not all(first <= each.hash_key <= last for each in inner):
                refused += [_rejected(each, MISPLACED, misplaced=True) for each in singles]
            else:
                yield from singles

    def _at_once(self, records: Sequence[StreamRecord]) -> list[pa.Array] | None:
        """The columns of all records, if none is refused; None if each has to be looked at."""
        try:
            columns = self._value.arrays([each.data for each in records]) if records else None
        except pa.ArrowException:  # a text that is none in UTF-8
            return None
        if columns is None:
            return None
        own = zip(*map(self._own_values, records), strict=True)
        return [*columns, *(pa.array(values, _OWN[name].type) for name, values in zip(self._own, own, strict=True))]

    def _one_by_one(
        self, records: Sequence[StreamRecord], refused: list[RejectedRow]
    ) -> tuple[pa.RecordBatch, list[StreamRecord]]:
        rows: list[Sequence[Any]] = []
        kept: list[StreamRecord] = []
        for record in records:
            try:
                rows.append([*self._value.values(record.data), *self._own_values(record)])
                kept.append(record)
            except Refused as error:
                refused.append(_rejected(record, str(error)))
        batch, misfits = fitting_rows(rows, self.schema)
        refused += [_rejected(kept[number], reason) for number, reason in misfits.items()]
        return batch, [each for number, each in enumerate(kept) if number not in misfits]

    def _own_values(self, record: StreamRecord) -> list[Any]:
        own = {
            KEY: record.key,
            SHARD: record.shard,
            SEQUENCE_NUMBER: str(record.sequence_number),
            SUB_SEQUENCE_NUMBER: record.place or 0,
            ARRIVAL_TIME: record.arrived_ms,
        }
        return [own[name] for name in self._own]


_OWN: Mapping[str, pa.Field] = {
    KEY: pa.field(KEY, pa.string()),
    SHARD: pa.field(SHARD, pa.string(), nullable=False),
    SEQUENCE_NUMBER: pa.field(SEQUENCE_NUMBER, pa.string(), nullable=False),
    SUB_SEQUENCE_NUMBER: pa.field(SUB_SEQUENCE_NUMBER, pa.int32(), nullable=False),
    ARRIVAL_TIME: pa.field(ARRIVAL_TIME, pa.timestamp("ms", "UTC")),
}


def _rejected(record: StreamRecord, reason: str, *, misplaced: bool = False) -> RejectedRow:
    return RejectedRow(record.to_json(misplaced=misplaced), reason, row_position(record.shard, record.offset))

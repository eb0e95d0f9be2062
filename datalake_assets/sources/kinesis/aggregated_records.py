"""Records into which the Kinesis Producer Library packed several, taken apart.

The format is that of "KPL Aggregated Record Format" (amazon-kinesis-producer, aggregation-format.md): four bytes of
magic, an ``AggregatedRecord`` in Protobuf, and the MD5 digest of that.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

__all__ = ["MAGIC", "UserRecord", "split"]

MAGIC = b"\xf3\x89\x9a\xc2"
_DIGEST_BYTES = 16
_FIELD = descriptor_pb2.FieldDescriptorProto


class UserRecord(NamedTuple):
    """A record as its producer sent it.

    Attributes:
        key: Its partition key.
        data: What it holds.
        hash_key: By which Kinesis would choose its shard: its producer's, or the MD5 digest of the partition key.
    """

    key: str
    data: bytes
    hash_key: int


def split(data: bytes, *, most: int) -> list[UserRecord]:
    """The records in an aggregated one, in their order.

    Args:
        data: What begins with `MAGIC`.
        most: So many may be in it.

    Raises:
        ValueError: It is damaged; says how.
    """
    body, digest = data[len(MAGIC) : -_DIGEST_BYTES], data[-_DIGEST_BYTES:]
    if len(data) < len(MAGIC) + _DIGEST_BYTES or hashlib.md5(body, usedforsecurity=False).digest() != digest:
        raise ValueError("its digest is not that of its content")
    try:
        message = _AGGREGATED.FromString(body)
    except DecodeError as error:
        raise ValueError(f"it is no aggregated record: {error}") from error
    if not message.IsInitialized():
        raise ValueError("a record in it has no key or no data")
    if len(message.records) > most:
        raise ValueError(f"it has {len(message.records):,} records")
    keys, given = list(message.partition_key_table), list(message.explicit_hash_key_table)
    try:
        explicit = [int(given[each.explicit_hash_key_index]) if _is_given(each) else None for each in message.records]
        named = [keys[each.partition_key_index] for each in message.records]
    except (IndexError, ValueError) as error:
        raise ValueError("a record in it has a key that is not in its tables") from error
    records = zip(named, message.records, explicit, strict=True)
    return [UserRecord(key, each.data, _hashed(key) if hash_ is None else hash_) for key, each, hash_ in records]


def _is_given(record: Any) -> bool:
    return bool(record.HasField("explicit_hash_key_index"))


def _hashed(key: str) -> int:
    """Kinesis's hash of a partition key (API reference, PutRecord: MD5, as an integer of 128 bits)."""
    return int.from_bytes(hashlib.md5(key.encode(), usedforsecurity=False).digest())


def _aggregated() -> Any:
    """The class of messages, by a descriptor of the published definition; members that no row has are not in it."""
    file = descriptor_pb2.FileDescriptorProto(
        name="datalake_assets/kpl.proto",
        package="datalake_assets.kpl",
        message_type=[
            descriptor_pb2.DescriptorProto(
                name="Record",
                field=[
                    _FIELD(name="partition_key_index", number=1, label=_REQUIRED, type=_FIELD.TYPE_UINT64),
                    _FIELD(name="explicit_hash_key_index", number=2, label=_OPTIONAL, type=_FIELD.TYPE_UINT64),
                    _FIELD(name="data", number=3, label=_REQUIRED, type=_FIELD.TYPE_BYTES),
                ],
            ),
            descriptor_pb2.DescriptorProto(
                name="AggregatedRecord",
                field=[
                    _FIELD(name="partition_key_table", number=1, label=_REPEATED, type=_FIELD.TYPE_STRING),
                    _FIELD(name="explicit_hash_key_table", number=2, label=_REPEATED, type=_FIELD.TYPE_STRING),
                    _FIELD(
                        name="records",
                        number=3,
                        label=_REPEATED,
                        type=_FIELD.TYPE_MESSAGE,
                        type_name=".datalake_assets.kpl.Record",
                    ),
                ],
            ),
        ],
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("datalake_assets.kpl.AggregatedRecord"))


_OPTIONAL, _REQUIRED, _REPEATED = _FIELD.LABEL_OPTIONAL, _FIELD.LABEL_REQUIRED, _FIELD.LABEL_REPEATED
_AGGREGATED = _aggregated()

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
    """

    key: str
    data: bytes


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
    keys = list(message.partition_key_table)
    if any(each.partition_key_index >= len(keys) for each in message.records):
        raise ValueError("a record in it has a key that is not in its table")
    return [UserRecord(keys[each.partition_key_index], each.data) for each in message.records]


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
                    _FIELD(name="data", number=3, label=_REQUIRED, type=_FIELD.TYPE_BYTES),
                ],
            ),
            descriptor_pb2.DescriptorProto(
                name="AggregatedRecord",
                field=[
                    _FIELD(name="partition_key_table", number=1, label=_REPEATED, type=_FIELD.TYPE_STRING),
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


_REQUIRED, _REPEATED = _FIELD.LABEL_REQUIRED, _FIELD.LABEL_REPEATED
_AGGREGATED = _aggregated()

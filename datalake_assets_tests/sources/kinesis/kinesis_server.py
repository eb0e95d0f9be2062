"""A Kinesis server of its own: kinesalite, a pinned package of npm's, in a process of its own on loopback.

It ends closed shards, as Kinesis does (moto never does). What it lacks is said where it matters: its ``ListShards``
has one page, and every open shard is said to be caught up with, however many records an answer leaves out.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from datalake_assets_tests.node_servers import AwsServer

__all__ = ["KinesisServer", "TestStream", "aggregated"]


class KinesisServer(AwsServer):
    """The server, while the context is open."""

    def __init__(self) -> None:
        super().__init__("kinesis")

    def stream(self, shards: int = 1, *, name: str = "") -> TestStream:
        """A new stream, of a name that no other has, or of this one."""
        stream = TestStream(self.client, name or f"s{uuid.uuid4().hex[:12]}")
        stream.create(shards)
        return stream

    def shift_clock(self, seconds: float) -> None:
        """Puts the server's clock so far ahead of ours."""
        self.tell(f"shift {round(seconds * 1000)}")

    def refuse(self, operation: str, code: str, count: int) -> None:
        """Has the next requests for an operation refused."""
        self.tell(f"fail {operation} {code} {count}")


class TestStream:
    """A stream as its producers and its owner see it: by boto3 alone."""

    __test__ = False

    def __init__(self, client: Any, name: str) -> None:
        self.client, self.name = client, name

    def create(self, shards: int) -> None:
        """Creates it, or creates it anew."""
        self.client.create_stream(StreamName=self.name, ShardCount=shards)
        self._until("ACTIVE")

    def delete(self) -> None:
        """Deletes it, and waits until it is gone."""
        self.client.delete_stream(StreamName=self.name)
        self._until("")

    def send(
        self, bodies: Iterable[Any], *, keys: Sequence[str] = ("a",), shard: str | None = None, hash_key: str = ""
    ) -> None:
        """Sends bodies, bytes, texts or what JSON is made of; their keys in turn, or all to one shard, or by a hash."""
        hash_key = hash_key or (self.hash_key(shard) if shard else "")
        to = {"ExplicitHashKey": hash_key} if hash_key else {}
        records = [
            {"Data": _data(body), "PartitionKey": keys[number % len(keys)], **to} for number, body in enumerate(bodies)
        ]
        for begin in range(0, len(records), 500):
            answer = self.client.put_records(StreamName=self.name, Records=records[begin : begin + 500])
            assert answer["FailedRecordCount"] == 0

    def hash_key(self, shard: str) -> str:
        """The first hash key that a shard takes."""
        return str(self.shards()[shard]["HashKeyRange"]["StartingHashKey"])

    def shards(self) -> dict[str, dict[str, Any]]:
        """All shards, by id."""
        found = self.client.list_shards(StreamName=self.name)["Shards"]
        return {each["ShardId"]: each for each in found}

    def open_shards(self) -> list[str]:
        """The shards that take records, by the hash keys that they take."""
        found = [each for each in self.shards().values() if "EndingSequenceNumber" not in each["SequenceNumberRange"]]
        return [
            each["ShardId"] for each in sorted(found, key=lambda each: int(each["HashKeyRange"]["StartingHashKey"]))
        ]

    def split(self, shard: str) -> None:
        """Splits a shard in two halves."""
        first, last = (int(self.shards()[shard]["HashKeyRange"][f"{each}HashKey"]) for each in ("Starting", "Ending"))
        self.client.split_shard(
            StreamName=self.name, ShardToSplit=shard, NewStartingHashKey=str((first + last + 1) // 2)
        )
        self._until("ACTIVE")

    def merge(self, shard: str, adjacent: str) -> None:
        """Makes two neighbours one."""
        self.client.merge_shards(StreamName=self.name, ShardToMerge=shard, AdjacentShardToMerge=adjacent)
        self._until("ACTIVE")

    def _until(self, status: str) -> None:
        end = time.monotonic() + 120
        while self._status() != status:
            assert time.monotonic() < end
            time.sleep(0.01)

    def _status(self) -> str:
        try:
            found = self.client.describe_stream_summary(StreamName=self.name)["StreamDescriptionSummary"]
        except self.client.exceptions.ResourceNotFoundException:
            return ""
        return str(found["StreamStatus"])


def _data(body: Any) -> bytes:
    return body if isinstance(body, bytes) else body.encode() if isinstance(body, str) else json.dumps(body).encode()


def aggregated(records: Sequence[tuple[str, bytes]], *, hash_key: str = "") -> bytes:
    """Records packed into one, byte by byte as aggregation-format.md of the Kinesis Producer Library says.

    Args:
        records: Partition key and data of each.
        hash_key: The explicit hash key of all of them, if there is one.
    """
    keys = list(dict.fromkeys(key for key, _ in records))
    body = b"".join(_field(1, key.encode()) for key in keys)
    body += _field(2, hash_key.encode()) if hash_key else b""
    for key, data in records:
        explicit = b"\x10\x00" if hash_key else b""
        tag = _field(4, _field(1, b"tag") + _field(2, b"value"))
        body += _field(3, b"\x08" + _varint(keys.index(key)) + explicit + _field(3, data) + tag)
    return b"\xf3\x89\x9a\xc2" + body + hashlib.md5(body, usedforsecurity=False).digest()


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    parts = []
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])

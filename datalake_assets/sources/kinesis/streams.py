"""A stream's shards and their records, through boto3; here Kinesis's failures become ours, once.

What may be tried again is, by pauses that grow: throttling is part of Kinesis's daily life, since each shard gives five
answers a second to all of its readers together. botocore's own retries are turned off, so that they don't multiply.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from datalake_assets.errors import SourceError, SourceRefused, SourceUnavailable
from datalake_assets.retrying import attempts
from datalake_assets.sources.aws_clients import AwsClients, translated
from datalake_assets.sources.kinesis.kinesis_model import KinesisSettings
from datalake_assets.sources.kinesis.kinesis_records import StreamRecord

__all__ = [
    "ANSWER_RECORDS",
    "READERS",
    "Answer",
    "IteratorExpired",
    "NotThere",
    "Pace",
    "Shard",
    "Stream",
    "StreamFacts",
    "Streams",
]

#: Kinesis limit: records of one answer (API reference, GetRecords).
ANSWER_RECORDS = 10_000
#: Kinesis limit: answers a second of one shard, for all readers that share it (GetRecords).
READS_PER_S = 5
#: Shards that are read at once: each answer may have 10 MiB.
READERS = 8
#: Attempts at a request, and seconds within which they are made.
ATTEMPTS, ATTEMPTS_S = 8, 60.0
#: The answer of a shard that was read too fast says so; other codes of a service that is busy or restarting.
_BUSY = frozenset(
    {
        *("ProvisionedThroughputExceededException", "LimitExceededException", "RequestLimitExceeded"),
        *("Throttling", "ThrottlingException", "KMSThrottlingException"),
        *("InternalFailure", "InternalFailureException", "ServiceUnavailable", "ServiceUnavailableException"),
    }
)
#: Creation times that differ by no more are one.
_SAME_CREATION_S = 1
_EXPIRED = "ExpiredIteratorException"
_UNKNOWN = "ResourceNotFoundException"
_INVALID = "InvalidArgumentException"
_SERVER_ERROR = 500
T = TypeVar("T")


class IteratorExpired(Exception):
    """A place in a shard was not read on from within five minutes; never leaves this package."""


class NotThere(SourceRefused):
    """A shard has no record of this number, or not any more; or what else was asked is refused as no valid argument."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard.

    Attributes:
        id: Its id.
        parents: The shards that it was made of.
        first: The sequence number from which it begins.
        last: The one at which it was closed; None while it is open.
        hash_keys: The first and the last hash key that it takes.
    """

    id: str
    parents: tuple[str, ...]
    first: int
    last: int | None
    hash_keys: tuple[int, int]

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Shard:
        """A shard by the names of the API."""
        numbers, keys = found["SequenceNumberRange"], found["HashKeyRange"]
        last = numbers.get("EndingSequenceNumber")
        return cls(
            id=found["ShardId"],
            parents=tuple(
                found[name] for name in ("ParentShardId", "AdjacentParentShardId") if found.get(name) is not None
            ),
            first=int(numbers["StartingSequenceNumber"]),
            last=None if last is None else int(last),
            hash_keys=(int(keys["StartingHashKey"]), int(keys["EndingHashKey"])),
        )


@dataclass(frozen=True, slots=True)
class StreamFacts:
    """What a stream says of itself.

    Attributes:
        arn: Its name in all regions and accounts.
        created_s: When it was created, in whole seconds since 1970.
        retention: How long it keeps a record.
        now: Its server's time.
        status: ``ACTIVE``, ``UPDATING``; or it cannot be read.
    """

    arn: str
    created_s: int
    retention: timedelta
    now: datetime
    status: str

    @property
    def id(self) -> str:
        """Names it among all streams that there ever were."""
        return f"{self.arn} {self.created_s}"

    def is_of(self, id_: str) -> bool:
        """Whether an id is its own; creation times are rounded."""
        arn, _, created = id_.rpartition(" ")
        return arn == self.arn and created.isdecimal() and abs(int(created) - self.created_s) <= _SAME_CREATION_S


@dataclass(frozen=True, slots=True)
class Answer:
    """Some records of a shard.

    Attributes:
        records: These, in order.
        next: Where to read on; None where the shard was read to its end.
        behind_ms: How far this is behind what comes in now.
    """

    records: Sequence[StreamRecord]
    next: str | None
    behind_ms: int

    @property
    def is_short(self) -> bool:
        """Whether it has all that there was."""
        return self.behind_ms == 0 and len(self.records) < ANSWER_RECORDS


class Pace:
    """Keeps to so many requests in any second.

    Args:
        clock: Seconds.
        wait: Waits for so many.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, wait: Callable[[float], None] = time.sleep
    ) -> None:
        self._clock, self._wait = clock, wait
        self._times: deque[float] = deque(maxlen=READS_PER_S)

    def keep(self) -> None:
        """Waits until another request may be made."""
        if len(self._times) == READS_PER_S:
            due = self._times[0] + 1.0
            while (left := due - self._clock()) > 0:
                self._wait(left)
        self._times.append(self._clock())


class Streams:
    """The streams of a region; holds connections, so close it.

    Args:
        region: The region; empty: that of the settings, or of AWS's conventions.
        settings: The endpoint, and how long to wait.

    Raises:
        ConfigError: The endpoint cannot work, or no region is known.
    """

    def __init__(self, region: str, settings: KinesisSettings) -> None:
        clients = AwsClients("kinesis", region or settings.kinesis_region or "", settings.kinesis_endpoint)
        self.timeout_s, self.region = settings.kinesis_timeout_s, clients.region
        self._client = clients.client(
            connect_timeout=self.timeout_s,
            read_timeout=self.timeout_s,
            max_pool_connections=READERS,
            retries={"total_max_attempts": 1},
        )

    def names(self) -> Iterator[str]:
        """Names of all streams.

        Raises:
            SourceError: They cannot be listed.
        """
        more: dict[str, str] = {}
        while True:
            answer = _tried(f"the streams of {self.region}", self._client.list_streams, **more)
            yield from answer["StreamNames"]
            if not answer.get("HasMoreStreams"):
                return
            more = {"ExclusiveStartStreamName": answer["StreamNames"][-1]}

    def stream(self, name: str) -> Stream:
        """A stream; nothing is asked yet."""
        return Stream(self._client, name, f"kinesis://{self.region}/{name}", self.timeout_s)

    def close(self) -> None:
        """Closes its connections; idempotent."""
        self._client.close()


class Stream:
    """One stream; may be read by several threads.

    Args:
        client: boto3's client.
        name: Its name.
        source: What it is called in messages.
        timeout_s: How long to wait for what must come to be seen.
    """

    def __init__(self, client: Any, name: str, source: str, timeout_s: float) -> None:
        self._client, self._name, self.source, self.timeout_s = client, name, source, timeout_s

    def facts(self) -> StreamFacts:
        """What it says of itself.

        Raises:
            SourceError: It could not be asked.
        """
        answer = _tried(self.source, self._client.describe_stream_summary, StreamName=self._name)
        found = answer["StreamDescriptionSummary"]
        date = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        return StreamFacts(
            arn=str(found["StreamARN"]),
            created_s=int(found["StreamCreationTimestamp"].timestamp()),
            retention=timedelta(hours=found["RetentionPeriodHours"]),
            now=parsedate_to_datetime(date) if date else datetime.now(UTC),
            status=found["StreamStatus"],
        )

    def shards(self) -> dict[str, Shard]:
        """The shards that have records still, by id, in the order of their ids.

        Raises:
            SourceError: They cannot be listed.
        """
        found: list[Shard] = []
        more = {"StreamName": self._name}
        while True:
            answer = _tried(self.source, self._client.list_shards, **more)
            found += map(Shard.of, answer["Shards"])
            if not answer.get("NextToken"):
                return {each.id: each for each in sorted(found, key=lambda shard: shard.id)}
            more = {"NextToken": answer["NextToken"]}

    def iterator(self, shard: str, *, at: int | None = None, after: int | None = None) -> str:
        """A place in a shard.

        Args:
            shard: Its id.
            at: The sequence number of the record that comes next;
            after: or of the one before. Neither: the oldest that there is.

        Raises:
            NotThere: The shard knows no such number.
            SourceError: It could not be asked.
        """
        where: dict[str, str] = {"ShardIteratorType": "TRIM_HORIZON"}
        if at is not None or after is not None:
            kind = "AFTER_SEQUENCE_NUMBER" if at is None else "AT_SEQUENCE_NUMBER"
            where = {"ShardIteratorType": kind, "StartingSequenceNumber": str(after if at is None else at)}
        answer = _tried(self.source, self._client.get_shard_iterator, StreamName=self._name, ShardId=shard, **where)
        return str(answer["ShardIterator"])

    def records(self, shard: str, iterator: str, *, most: int | None = None) -> Answer:
        """What comes at a place of a shard.

        Raises:
            IteratorExpired: The place is too old; ask for another.
            SourceError: The stream failed.
        """
        answer = _tried(self.source, self._client.get_records, ShardIterator=iterator, Limit=most or ANSWER_RECORDS)
        records = [StreamRecord.of(shard, each) for each in answer["Records"]]
        return Answer(records, answer.get("NextShardIterator"), answer.get("MillisBehindLatest", 0))


def _tried(source: str, call: Callable[..., T], **asked: Any) -> T:
    """An answer, at last."""
    for attempt in attempts(SourceUnavailable, attempts=ATTEMPTS, timeout=ATTEMPTS_S, wait_initial=0.2, wait_max=5.0):
        with attempt, translated(source, _refusal):
            return call(**asked)
    raise AssertionError("the last attempt raises")


def _refusal(source: str, code: str, text: str, status: int) -> SourceError | IteratorExpired:
    if code == _EXPIRED:
        return IteratorExpired(source)
    if code in _BUSY or status >= _SERVER_ERROR:
        return SourceUnavailable(source, f"it is busy or restarting ({code}, {status})", cure="run it again")
    if code == _INVALID:
        return NotThere(source, f"it refused: {text or code}", cure="run it again")
    if code == _UNKNOWN:
        return SourceRefused(source, text or "there is no such stream", cure="correct the feed's stream and region")
    return SourceRefused(source, f"it refused: {text or code}", cure="correct the feed or the credentials")

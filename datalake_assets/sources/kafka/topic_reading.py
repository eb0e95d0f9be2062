"""One read of a topic: from given offsets to those that it had when the read began, each message once.

The brokers say what there is of each partition before the first message is asked for, so that what expired unread, and
a topic that was created anew, are seen at once; and that a partition was read to its end is known from them, by its
last offset or by their word that there is nothing beyond. Silence proves nothing: it ends a read with an error.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from operator import methodcaller
from typing import Any

import pyarrow as pa
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from datalake_assets.core.batches import ReadRequest, SourceBatch
from datalake_assets.errors import SourceDataLost, SourceRecreated, SourceUnavailable
from datalake_assets.feed import Feed
from datalake_assets.sources.kafka.brokers import Brokers, Extent
from datalake_assets.sources.kafka.connection import Connection, failure
from datalake_assets.sources.kafka.kafka_model import declared
from datalake_assets.sources.kafka.messages import ColumnsChanged, KafkaMessage, MessageLayout
from datalake_assets.sources.topic_identity import TopicIdentity

__all__ = ["TopicBatches"]

logger = logging.getLogger(__name__)

#: Messages that become one batch: more gain nothing, and are held in memory.
_MESSAGES = 10_000
#: `Consumer.consume` waits so long for a batch to be full, though there be nothing more.
_POLL_S = 0.1
#: A topic that is written faster than it is read ends a read here; the next one goes on.
LONGEST_READ_S = 3600.0
#: A topic that is followed is looked at this often: it may have new partitions, or have been created anew.
_LOOK_S = 30.0
#: Seconds for which it is asked once more, by fetching, whether a partition ends before what was landed of it.
_CONFIRM_S = 5.0
_EXPIRED = frozenset({KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE})  # noqa: SLF001


#: Source partition of a message.
_PARTITION = methodcaller("partition")


class TopicBatches:
    """One read of a feed; implements `Batches`.

    Args:
        brokers: The cluster.
        feed: A feed of a topic.
        request: What is wanted.
        layout: Gives the columns; asked once a read.
        follows: Go on with what comes, until the topic gets other partitions or its messages other columns, or it is
            created anew.
    """

    def __init__(
        self,
        brokers: Brokers,
        feed: Feed,
        request: ReadRequest,
        layout: Callable[[], MessageLayout],
        *,
        follows: bool = False,
    ) -> None:
        self._brokers, self._feed, self.request, self._new_layout = brokers, feed, request, layout
        self._follows = follows
        self._declared = declared(feed)
        self._source = brokers.source(self._declared.topic)
        self._layout: MessageLayout | None = None
        self._reached: dict[int, int] = {}
        self._identity = TopicIdentity(self._declared.topic)
        self._source_id = ""
        self.recreated = False
        self.unfinished = ""

    @property
    def layout(self) -> MessageLayout:
        """How messages become rows, as far as is known now."""
        if self._layout is None:
            self._layout = self._new_layout()
        return self._layout

    @property
    def schema(self) -> pa.Schema:
        """The columns of the feed's messages; asks a schema registry if there is one."""
        return self.layout.schema

    @property
    def time_column(self) -> str | None:
        """The column that partitions the rows."""
        return self._feed.row_time

    def __iter__(self) -> Generator[SourceBatch, None, None]:
        """Streams the messages.

        Raises:
            SourceError: The cluster failed or refused, or does not have what was to be read.
        """
        layout, self._reached, self.unfinished = self.layout, {}, ""
        topic = self._declared.topic
        with self._brokers.connection(topic, isolation=self._declared.isolation) as connection:
            extents = self._brokers.extents(connection, topic)
            self._identity = TopicIdentity(topic, self._brokers.topic_id(topic))
            starts = self._starts(connection, extents)
            self._source_id = self._identity.to_text(before="" if self.recreated else self.request.source_id)
            reading = _Reading(self._source, topic, connection, starts, extents)
            # what comes first is wanted of each partition, though nothing was landed of it: it may expire unread
            yield self._batch(layout, (), starts)
            timeout_s = self._brokers.timeout_s
            with closing(self._followed(reading) if self._follows else reading.parts(timeout_s)) as parts:
                for messages, read_to in parts:
                    yield self._batch(layout, messages, read_to)
                    if self.unfinished:
                        return
            if not reading.is_over and not self._follows:
                self.unfinished = f"not caught up within {LONGEST_READ_S:g} s; the next export goes on from there"

    def _followed(self, reading: _Reading) -> Generator[tuple[Sequence[KafkaMessage], Mapping[int, int]], None, None]:
        """What comes, until the topic has other partitions than when the read began, or is another by its id."""
        looked = time.monotonic()
        for part in reading.followed():
            yield part
            if time.monotonic() - looked >= _LOOK_S:
                looked = time.monotonic()
                if self._brokers.partitions(reading.connection, self._declared.topic) != reading.partitions:
                    return
                now = TopicIdentity(self._declared.topic, self._brokers.topic_id(self._declared.topic))
                if now.is_other_than(self._source_id):
                    return

    def _batch(
        self, layout: MessageLayout, messages: Sequence[KafkaMessage], read_to: Mapping[int, int]
    ) -> SourceBatch:
        try:
            batch = layout.batch(messages)
        except ColumnsChanged as change:
            self.unfinished = f"{change}; what came until then is landed, and the next export goes on from there"
            logger.warning("%s: %s", self._source, self.unfinished)
            return _until_changed(layout, messages)
        self._reached |= read_to
        return replace(batch, read_to=dict(read_to.items()), source_id=self._source_id)

    def _starts(self, connection: Connection, extents: dict[int, Extent]) -> dict[int, int]:
        """Where to begin in each partition; extents are set right.

        Raises:
            SourceRecreated: The topic ends before what was landed of it, or is another one by its id.
            SourceDataLost: What comes next has expired.
        """
        wanted = self.request.numbered_starts
        before = self.request.source_id
        is_other = self._identity.is_other_than(before)
        short = {each: start for each, start in wanted.items() if each in extents and start > extents[each].high}
        if short and not is_other:
            reached = _ends_by_fetching(connection, self._declared.topic, short, self._brokers.timeout_s)
            extents |= {each: Extent(extents[each].low, high) for each, high in reached.items()}
        there = {each: extents[each].high if each in extents else -1 for each in wanted}
        gone = sorted(each for each, start in wanted.items() if 0 < start > there[each])
        # a partition of which a read before knew nothing has come since, and had its first messages then
        expected = {**dict.fromkeys(extents if wanted else (), 0), **wanted}
        late = sorted(each for each in expected.keys() & extents.keys() - {*gone} if extents[each].low > expected[each])
        self.recreated = (bool(gone) or is_other) and self.request.new_epoch
        if self.recreated:
            wanted = {}
        elif is_other:
            raise SourceRecreated(self._source, self._identity.told(before))
        elif gone:
            raise SourceRecreated(self._source, _recreated(gone[0], wanted[gone[0]], extents.get(gone[0])))
        elif late and not self.request.new_epoch:
            lost = f"rows from offset {expected[late[0]]} to {extents[late[0]].low - 1} expired before they were read"
            raise SourceDataLost(self._source, f"partition {late[0]}: {lost}")
        return {partition: max(each.low, wanted.get(partition, 0)) for partition, each in extents.items()}

    def acknowledge(self) -> None:
        """Tells the feed's consumer group, if it has one, what was landed; a failure loses nothing."""
        if self._declared.group is None or not self._reached:
            return
        landed = [TopicPartition(self._declared.topic, each, offset) for each, offset in self._reached.items()]
        with self._brokers.connection(self._declared.topic, group=self._declared.group) as connection:
            try:
                connection.consumer.commit(offsets=landed, asynchronous=False)
            except KafkaException as error:
                logger.warning("%s: group %s was not told: %s", self._source, self._declared.group, error)


def _recreated(partition: int, start: int, extent: Extent | None) -> str:
    if extent is None:
        return f"there is no partition {partition} any more, but offsets below {start} were landed already"
    return f"partition {partition} ends at offset {extent.high - 1}, but offsets below {start} were landed already"


def _ends_by_fetching(
    connection: Connection, topic: str, starts: Mapping[int, int], timeout_s: float
) -> dict[int, int]:
    """Where partitions end by the word of who fetches from where they were read to; of those alone that end there.

    Brokers tell the end of a partition by two ways, and a false alarm of one would have a topic read twice. Tansu tells
    who lists offsets one that is too low: that of the last batch's first message. After a failover, Kafka before 2.2
    may (KIP-207).
    """
    consumer, left, found = connection.consumer, set(starts), dict[int, int]()
    ends = time.monotonic() + min(_CONFIRM_S, timeout_s)
    consumer.assign([TopicPartition(topic, each, start) for each, start in starts.items()])
    while left and time.monotonic() < ends:
        for message in consumer.consume(1, timeout=_POLL_S):
            error, partition = message.error(), message.partition()
            if partition is None:  # it is about a broker
                continue
            if error is None or error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001  confluent-kafka's name
                _, high = consumer.get_watermark_offsets(TopicPartition(topic, partition), cached=True)
                found[partition] = max(high, starts[partition])
                left.discard(partition)
            elif error.code() in _EXPIRED:
                left.discard(partition)
            else:
                connection.passes(error)
    consumer.unassign()
    return found


def _until_changed(layout: MessageLayout, messages: Sequence[KafkaMessage]) -> SourceBatch:
    """The messages before the first one that has other columns; what comes after it is left to the next read."""
    for end in range(len(messages)):
        try:
            layout.batch(messages[end : end + 1])
        except ColumnsChanged:
            return layout.batch(messages[:end])
    raise AssertionError("one of them has other columns")


class _Reading:
    """Partitions that are being read, each until its end.

    Args:
        source: What is read, for errors.
        topic: Its name.
        connection: Of this read alone.
        starts: Where to begin, by partition.
        extents: What there was of each partition when the read began.

    Attributes:
        connection: Of this read alone.
        empty: Where those begin of which there was nothing to read.
    """

    def __init__(
        self, source: str, topic: str, connection: Connection, starts: Mapping[int, int], extents: Mapping[int, Extent]
    ) -> None:
        self._source, self._topic, self.connection = source, topic, connection
        self._consumer = connection.consumer
        self._extents, self._starts = extents, starts
        self._left = {partition for partition, start in starts.items() if start < extents[partition].high}
        self._given = {partition: starts[partition] for partition in self._left}
        self.empty = {each: start for each, start in starts.items() if each not in self._left}
        self._ended: set[int] = set()

    @property
    def partitions(self) -> list[int]:
        """The topic's partitions when the read began."""
        return sorted(self._extents)

    def _assign(self, partitions: Iterable[int]) -> None:
        self._consumer.assign([TopicPartition(self._topic, each, self._starts[each]) for each in sorted(partitions)])

    @property
    def is_over(self) -> bool:
        """Whether every partition was read to its end."""
        return not self._left

    def parts(self, timeout_s: float) -> Generator[tuple[Sequence[KafkaMessage], Mapping[int, int]], None, None]:
        """Messages as they come, in the order of their offsets within each partition, and up to where that is all.

        While some are being landed the next ones are waited for, in a thread of their own. Close it.

        Args:
            timeout_s: Silence after which what is missing will not come.

        Raises:
            SourceError: The cluster failed or refused.
        """
        self._assign(self._left)
        with ThreadPoolExecutor(1, thread_name_prefix="kafka") as ahead:
            yield from self._parts(lambda: ahead.submit(self._consumer.consume, _MESSAGES, timeout=_POLL_S), timeout_s)

    def _parts(
        self, ask: Callable[[], Future[list[Any]]], timeout_s: float
    ) -> Iterator[tuple[Sequence[KafkaMessage], Mapping[int, int]]]:
        began = heard = time.monotonic()
        asked = ask()
        while self._left and time.monotonic() - began < LONGEST_READ_S:
            taken = asked.result()
            # a partition that is over goes on to be written: its messages are the next read's
            notices = [each for each in taken if each.error() is not None]
            messages = [each for each in taken if each.error() is None] if notices else taken
            if not self._left.issuperset(map(_PARTITION, messages)):
                messages = [each for each in messages if each.partition() in self._left]
            last = dict(zip(map(_PARTITION, messages), messages, strict=True))  # of each partition
            self._given |= {partition: each.offset() + 1 for partition, each in last.items()}
            are_ends = self._note_ends(notices)
            if self._left:
                asked = ask()
            if messages or are_ends:
                self.connection.answered()
                yield messages, dict(self._given)
                heard = time.monotonic()
                continue
            self.connection.check()
            if time.monotonic() - heard > timeout_s:
                reason = f"nothing came of partitions {sorted(self._left)} within {timeout_s:g} s, and there is more"
                raise SourceUnavailable(self._source, reason)

    def followed(self) -> Iterator[tuple[Sequence[KafkaMessage], Mapping[int, int]]]:
        """Messages of all partitions as they come, for ever; parts without any show that none came.

        Raises:
            SourceError: The cluster refused; what passes is waited for.
        """
        self._assign(self._starts)
        self._given = dict(self._starts)
        while True:
            taken: list[Any] = self._consumer.consume(_MESSAGES, timeout=_POLL_S)
            messages = [each for each in taken if each.error() is None]
            self._given |= {each.partition(): each.offset() + 1 for each in messages}
            ends = [each for each in taken if each.error() is not None and self._is_end(each)]
            for each in ends:
                self._given[each.partition()] = max(each.offset(), self._given[each.partition()])
            if messages or ends:
                self.connection.answered()
            self.connection.check()
            yield messages, dict(self._given)

    def _note_ends(self, notices: Sequence[Any]) -> bool:
        """Whether some partitions are over now; these are not asked for more."""
        for each in notices:
            if self._is_end(each) and each.partition() in self._left:
                # beyond the last message, where markers of transactions or compacted rows had numbers
                self._given[each.partition()] = max(each.offset(), self._given[each.partition()])
                self._ended.add(each.partition())
        self._ended |= {each for each in self._left if self._given[each] >= self._extents[each].high}
        over = sorted(self._ended & self._left)
        self._left -= self._ended
        if over:
            self._consumer.pause([TopicPartition(self._topic, each) for each in over])
        return bool(over)

    def _is_end(self, message: Any) -> bool:
        """Whether it says that a partition has nothing more; anything else that it says is an error, or passes."""
        error = message.error()
        if error is None or self.connection.passes(error):
            return False
        if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001  confluent-kafka's name
            return True
        if error.code() in _EXPIRED:
            reason = f"partition {message.partition()}: the next rows expired while it was being read"
            raise SourceDataLost(self._source, reason)
        raise failure(self._source, error)

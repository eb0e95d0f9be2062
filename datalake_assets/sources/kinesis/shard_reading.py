"""One read of a stream: from given numbers to where each shard was when the read began, each record once.

A shard begins only when all that it was made of has been read to its end, so that the records of a key come in their
order through splits and merges. That a shard was read far enough is known from Kinesis: it says of each answer how far
behind that is, and no more than the read is old will do; or that a closed shard has nothing more. An empty answer
proves nothing by itself.

Kinesis drops records after a time, and says nothing of it: a reader that asks for the next number gets the oldest that
there is. A mark for each shard in the feed's hint, under a name that no shard has, tells what Kinesis doesn't: the time
until which everything that arrived was read. As long as that is younger than the stream's retention, nothing can have
expired unread.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TypeAlias

import pyarrow as pa

from datalake_assets.core.batches import ReadRequest, SourceBatch
from datalake_assets.core.position import SourcePartition
from datalake_assets.errors import SourceDataLost, SourceRecreated, SourceUnavailable
from datalake_assets.feed import Feed
from datalake_assets.sources.kinesis.kinesis_records import (
    RecordLayout,
    StreamRecord,
    after_record,
    end_of_shard,
    first_of,
    is_end,
    record_of,
)
from datalake_assets.sources.kinesis.streams import (
    READERS,
    Answer,
    IteratorExpired,
    NotThere,
    Pace,
    Shard,
    Stream,
    StreamFacts,
)

__all__ = ["ShardBatches", "read_until"]

logger = logging.getLogger(__name__)

#: A stream that is written faster than it is read ends a read here; the next one goes on.
LONGEST_READ_S = 3600.0
#: Kinesis dates arrivals approximately, and clocks differ: so much is given away before anything counts as not expired.
_MARGIN = timedelta(minutes=1)
#: A stream that is followed is asked this often, within what each shard allows; and this often for shards, besides when
#: one is closed.
_POLL_S, _LOOK_S = 0.25, 30.0
#: Between two looks at what is to be seen soon.
_PAUSE_S = 0.2
#: Answers without a record that a look at one record takes: a shard gives some, where records have expired.
_EMPTY_ANSWERS = 100
_HASH_KEYS = 2**128


def read_until(shard: str) -> str:
    """The name of the time until which everything was read that arrived at a shard, in milliseconds since 1970.

    No shard is called so: Kinesis takes letters, digits, ``_``, ``.`` and ``-`` for their ids.
    """
    return f"{shard} until (ms)"


class ShardBatches:
    """One read of a feed; implements `Batches`.

    Args:
        stream: The stream.
        feed: A feed of it.
        request: What is wanted.
        follows: Go on with what comes.
    """

    def __init__(self, stream: Stream, feed: Feed, request: ReadRequest, *, follows: bool = False) -> None:
        self._stream, self._feed, self.request, self._follows = stream, feed, request, follows
        self._layout = RecordLayout(feed)
        self.recreated = False
        self.unfinished = ""

    @property
    def schema(self) -> pa.Schema:
        """The columns of the feed's records."""
        return self._layout.schema

    @property
    def time_column(self) -> str | None:
        """The column that partitions the rows."""
        return self._feed.row_time

    def __iter__(self) -> Generator[SourceBatch, None, None]:
        """Streams the records.

        Raises:
            SourceError: The stream failed or refused, or does not have what was to be read.
        """
        self.unfinished, began = "", time.monotonic()
        facts, shards = self._stream.facts(), self._stream.shards()
        if facts.status not in {"ACTIVE", "UPDATING"}:
            raise SourceUnavailable(self._stream.source, f"the stream is {facts.status}")
        starts = self._starts(facts, shards)
        reading = _Reading(self._stream, facts, shards, starts, began)
        for records, read_to in reading.followed() if self._follows else reading.parts():
            batch = self._layout.batch(records, starts, reading.hash_keys)
            yield replace(batch, read_to=read_to, source_id=facts.id)
        if not reading.is_over:
            self.unfinished = f"not caught up within {LONGEST_READ_S:g} s; the next export goes on from there"

    def acknowledge(self) -> None:
        """Tells nobody: a stream does not know its readers."""

    def _starts(self, facts: StreamFacts, shards: Mapping[str, Shard]) -> Mapping[SourcePartition, int]:
        """Where to begin, by shard, and the marks.

        Raises:
            SourceRecreated: What was landed is of another stream of this name.
            SourceDataLost: Records may have expired unread.
        """
        starts = dict(self.request.start_offsets or {})
        known = self.request.source_id
        is_same = facts.is_of(known)
        self.recreated = bool(known) and not is_same and self.request.new_epoch
        if self.recreated:
            return {}
        if known and not is_same:
            created = datetime.fromtimestamp(facts.created_s, UTC).isoformat()
            reason = f"the stream was created at {created}, and what was landed is of another stream"
            raise SourceRecreated(self._stream.source, reason)
        if self.request.source_id and not self.request.new_epoch:
            self._refuse_gaps(facts, shards, starts)
        return starts

    def _refuse_gaps(
        self, facts: StreamFacts, shards: Mapping[str, Shard], starts: Mapping[SourcePartition, int]
    ) -> None:
        """Makes sure that nothing expired unread.

        A shard has lost nothing if it was read within the time for which the stream keeps records, or if its last
        landed record is still there; and none of the shards that came of it has. Such shards have to take all hash
        keys; for one that waits for its other parent, the parent that was read to its end does.
        """
        waiting = {parent for each in shards.values() if each.id not in starts for parent in each.parents}
        begun = {
            each: starts[each] for each in shards if each in starts and (each in waiting or not is_end(starts[each]))
        }
        untils = {each: datetime.fromtimestamp(starts.get(read_until(each), 0) / 1000, UTC) for each in begun}
        late = {each for each, until in untils.items() if facts.now - until > facts.retention - _MARGIN}
        late = {each for each in late if not self._is_whole(each, shards, starts)}
        reached = 0
        for first, last in sorted(shards[each].hash_keys for each in begun.keys() - late):
            if first > reached:
                break
            reached = max(reached, last + 1)
        if reached < _HASH_KEYS:
            kept = f"the stream keeps them for {facts.retention / timedelta(hours=1):g} h"
            which = min(late, key=untils.__getitem__, default="")
            was = (
                f"shard {which} was read until {untils[which]:%Y-%m-%d %H:%M:%S} UTC" if which else "not all was begun"
            )
            raise SourceDataLost(self._stream.source, f"records may have expired unread: {kept}, and {was}")

    def _is_whole(self, shard: str, shards: Mapping[str, Shard], starts: Mapping[SourcePartition, int]) -> bool:
        """Whether a shard has all from where it begins: its last landed record is there, or one of before the shard."""
        ended = [each for each in shards[shard].parents if each in shards and is_end(starts.get(each, 0))]
        return any(_has(self._stream, each, starts[each]) for each in (shard, *ended))


def _has(stream: Stream, shard: str, offset: int) -> bool:
    """Whether a shard still has the record before, or at, a next offset; or any record, if it was read to its end."""
    number = None if is_end(offset) else record_of(offset)
    try:
        place: str | None = stream.iterator(shard, at=number)
        for _ in range(_EMPTY_ANSWERS):
            if place is None:
                return False
            answer = stream.records(shard, place, most=1)
            if answer.records:
                return number is None or answer.records[0].sequence_number == number
            if answer.behind_ms == 0 and number is not None:
                return False
            place = answer.next
    except NotThere:
        pass
    return False


@dataclass(slots=True)
class _Place:
    """How far a shard was read.

    Attributes:
        shard: The shard.
        next: The next offset that is wanted.
        until_ms: All that arrived before it was read, in milliseconds of the server's clock.
        iterator: Where to read on; None before the first answer, and after the last.
        is_caught_up: It was read beyond the read's beginning.
        was_ahead: It was read to where nothing was about to expire; then nothing may expire unread any more.
        exhausted_at: When it said that it is closed and has nothing more, by `time.monotonic`; 0 before.
        pace: Keeps to the limit.
    """

    shard: Shard
    next: int
    until_ms: int
    iterator: str | None = None
    is_caught_up: bool = False
    was_ahead: bool = False
    exhausted_at: float = 0.0
    pace: Pace = field(default_factory=Pace)

    def iterator_of(self, stream: Stream) -> str:
        """A new place to read on from; where its record is not there any more, the oldest that is."""
        number = record_of(self.next)
        try:
            if self.next == after_record(number):
                return stream.iterator(self.shard.id, after=number)
            if self.next != first_of(self.shard.first):
                return stream.iterator(self.shard.id, at=number)
        except NotThere:
            logger.info("%s: shard %s does not know %d any more", stream.source, self.shard.id, number)
        return stream.iterator(self.shard.id)

    def read(self, stream: Stream) -> Answer:
        """The next answer."""
        self.pace.keep()
        for _ in range(2):
            if self.iterator is None:
                self.iterator = self.iterator_of(stream)
            try:
                return stream.records(self.shard.id, self.iterator)
            except IteratorExpired:
                self.iterator = None
        raise SourceUnavailable(stream.source, f"shard {self.shard.id}: a place expired as soon as it was given")


#: Records in the order of their numbers within each shard, and up to where that is all.
_Part: TypeAlias = tuple[Sequence[StreamRecord], dict[SourcePartition, int]]


class _Reading:
    """Shards that are being read, each until its end or until it is caught up with.

    Args:
        stream: The stream.
        facts: What it said of itself.
        shards: Those that it has.
        starts: Where to begin, by shard, and the marks.
        began: When the facts were asked for, by `time.monotonic`.
    """

    def __init__(
        self,
        stream: Stream,
        facts: StreamFacts,
        shards: Mapping[str, Shard],
        starts: Mapping[SourcePartition, int],
        began: float,
    ) -> None:
        self._stream, self._shards, self._began = stream, shards, began
        self._began_ms = int(facts.now.timestamp() * 1000)
        self._kept_ms = int(facts.retention / timedelta(milliseconds=1))
        # a stream has nothing that is older than what it keeps, or than itself
        self._oldest_ms = max(self._began_ms - self._kept_ms, facts.created_s * 1000)
        self._ended: dict[SourcePartition, int] = {
            each: offset for each, offset in starts.items() if is_end(offset) and each in shards
        }
        self._starts = starts
        self._places: dict[str, _Place] = {}
        self._left: dict[str, int] = {}
        self._seen_ms = 0  # when the shards were listed
        self._take_up()

    @property
    def is_over(self) -> bool:
        """Whether all was read that had come when the read began."""
        return all(each.is_caught_up for each in self._places.values())

    @property
    def hash_keys(self) -> dict[str, tuple[int, int]]:
        """The first and the last hash key that each shard takes, by its id."""
        return {each.id: each.hash_keys for each in self._shards.values()}

    def parts(self) -> Iterator[_Part]:
        """Records as they come, until all was read that had come when the read began.

        Raises:
            SourceError: The stream failed or refused.
        """
        with ThreadPoolExecutor(READERS, thread_name_prefix="kinesis") as threads:
            while not self.is_over:
                places = [each for each in self._places.values() if not (each.is_caught_up or each.exhausted_at)]
                yield from self._read(places, threads)
                if self._has_exhausted:
                    if not places:
                        time.sleep(_PAUSE_S)
                    yield self._look()
                if time.monotonic() - self._began > LONGEST_READ_S:
                    return

    def followed(self) -> Iterator[_Part]:
        """Records as they come, for ever; parts without any show that none came.

        Raises:
            SourceError: The stream failed or refused.
        """
        looked = time.monotonic()
        with ThreadPoolExecutor(READERS, thread_name_prefix="kinesis") as threads:
            while True:
                began = time.monotonic()
                yield from self._read([each for each in self._places.values() if not each.exhausted_at], threads)
                if self._has_exhausted or began - looked > _LOOK_S:
                    looked = began
                    yield self._look()
                time.sleep(max(0.0, began + _POLL_S - time.monotonic()))

    def _read(self, places: Sequence[_Place], threads: ThreadPoolExecutor) -> Iterator[_Part]:
        """An answer of each, some at once."""
        for begin in range(0, len(places), READERS):
            at_ms, some = self._elapsed_ms, places[begin : begin + READERS]
            answers = list(threads.map(lambda each: each.read(self._stream), some))
            for place, answer in zip(some, answers, strict=True):
                self._refuse_gap(place, answer)
                self._note(place, answer, at_ms)
            yield [record for each in answers for record in each.records], self._read_to

    def _refuse_gap(self, place: _Place, answer: Answer) -> None:
        """Makes sure that nothing expired between an answer and the one before, where reading falls behind.

        Raises:
            SourceDataLost: Records may have.
        """
        unread_ms = self._began_ms + self._elapsed_ms - place.until_ms
        if unread_ms <= self._kept_ms - _MARGIN / timedelta(milliseconds=1):
            place.was_ahead = True
        elif place.was_ahead and answer.records and not _has(self._stream, place.shard.id, place.next):
            reason = f"reading shard {place.shard.id} fell behind by more than the {self._kept_ms / 3_600_000:g} h"
            raise SourceDataLost(self._stream.source, f"{reason} for which the stream keeps records; some may be lost")

    @property
    def _elapsed_ms(self) -> int:
        return int((time.monotonic() - self._began) * 1000)

    @property
    def _has_exhausted(self) -> bool:
        return any(each.exhausted_at for each in self._places.values())

    def _note(self, place: _Place, answer: Answer, at_ms: int) -> None:
        """Takes note of an answer to a request that was made ``at_ms`` after the beginning."""
        if answer.records:
            place.next = max(place.next, after_record(answer.records[-1].sequence_number))
        place.iterator = answer.next
        if answer.next is None:
            place.exhausted_at = time.monotonic()
        if place.shard.last is None and (answer.is_short or answer.behind_ms > 0):
            # what came of it since it was seen open has nothing that is older than that
            place.until_ms = max(place.until_ms, self._began_ms + min(self._seen_ms, at_ms - answer.behind_ms))
            place.is_caught_up = not place.exhausted_at and answer.behind_ms <= at_ms

    def _look(self) -> _Part:
        """Lists the shards again; ends those that have nothing more, once it is known what became of them.

        Raises:
            SourceError: They cannot be listed, or that stays unknown.
        """
        self._seen_ms = self._elapsed_ms
        self._shards = self._stream.shards()
        parents = {parent for each in self._shards.values() for parent in each.parents}
        for place in list(self._places.values()):
            place.shard = self._shards.get(place.shard.id, place.shard)
            if not place.exhausted_at:
                continue
            if place.shard.last is not None and place.shard.id in parents:
                self._ended[place.shard.id] = end_of_shard(place.shard.last)
                self._left[place.shard.id] = self._places.pop(place.shard.id).until_ms
            elif time.monotonic() - place.exhausted_at > self._stream.timeout_s:
                reason = f"shard {place.shard.id} is closed, and what became of it is not listed"
                raise SourceUnavailable(self._stream.source, reason)
        self._take_up()
        return [], self._read_to

    def _take_up(self) -> None:
        """Begins the shards whose parents have all been read to their ends, or are there no more."""
        for id_, shard in self._shards.items():
            is_due = all(parent in self._ended or parent not in self._shards for parent in shard.parents)
            if is_due and id_ not in self._places and id_ not in self._ended:
                self._places[id_] = _Place(shard, self._starts.get(id_, first_of(shard.first)), self._until_ms(shard))

    def _until_ms(self, shard: Shard) -> int:
        """Until when a shard was read that is to be begun: one that came of others has nothing that is older."""
        known = [self._starts[name] for name in map(read_until, (shard.id, *shard.parents)) if name in self._starts]
        return max(
            (*known, *(self._left[each] for each in shard.parents if each in self._left)), default=self._oldest_ms
        )

    @property
    def _read_to(self) -> dict[SourcePartition, int]:
        """Where each shard is to be read on, and the marks."""
        read_to: dict[SourcePartition, int] = dict(self._ended)
        for each in self._places.values():
            read_to[each.shard.id], read_to[read_until(each.shard.id)] = each.next, each.until_ms
        return read_to

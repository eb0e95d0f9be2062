"""Messages in quarantine are landed once when the feed was mended, whoever gives them again and whatever dies."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from datalake_assets.core.batches import InMemoryBatches, ItemOrigin, RejectedRow, SourceBatch
from datalake_assets.core.item_ids import forgotten_at
from datalake_assets.core.row_texts import QuarantinedRow
from datalake_assets.errors import ConfigError, InvalidFeed
from datalake_assets.feed import Feed, parse_feed
from datalake_assets.lake.item_replay import HELD, NO_ORIGIN
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.tables import open_table
from datalake_assets.sources.systems import registered
from datalake_assets_tests.lake.feeds import POST, START, rows
from datalake_assets_tests.lake.mortal_store import Killed, MortalStore

FAR = datetime(2100, 1, 1, tzinfo=UTC)
BROKEN = "it is odd"


@pytest.fixture(params=["parquet", "iceberg"])
def feed(request: pytest.FixtureRequest) -> Iterator[Feed]:
    with registered(POST):
        yield feed_since("2025-01-01", request.param)


def feed_since(start: str, form: str) -> Feed:
    return parse_feed(
        json.dumps({"name": "s", "kind": "stream", "source": {"type": "post"}, "start": start, "format": form})
    )


def letters(numbers: Sequence[int], *, broken: Sequence[int] = (), until: datetime = FAR) -> InMemoryBatches:
    """Row ``i`` is letter ``i``; those that are broken are put aside as they came."""
    good = [n for n in numbers if n not in broken]
    named = pa.array([f"letter {n}" for n in good], pa.string())
    rejected = tuple(put_aside(n, until) for n in numbers if n in broken)
    return InMemoryBatches(
        (SourceBatch(rows(good), rejected=rejected, source_items=named, forget_after=until),), "rowtime"
    )


def put_aside(number: int, until: datetime = FAR) -> RejectedRow:
    origin = ItemOrigin(f"letter {number}", forgotten_at(until), envelope=json.dumps({"n": number}))
    return RejectedRow(b"\xff%d" % number, BROKEN, f"letter {number}", origin=origin)


def decode(still: Sequence[int] = ()) -> Any:
    """What a mended feed makes of letters that were put aside."""

    def decoded(some: Sequence[RejectedRow], schema: pa.Schema) -> Iterator[SourceBatch]:
        assert schema.names == ["id", "note", "rowtime"]
        assert all(row.raw == b"\xff%d" % json.loads(row.origin.envelope)["n"] for row in some)
        numbers = [json.loads(row.origin.envelope)["n"] for row in some]
        good = [n for n in numbers if n not in still]
        items = pa.array([f"letter {n}" for n in good], pa.string())
        rejected = tuple(put_aside(n) for n in numbers if n in still)
        yield SourceBatch(rows(good), rejected=rejected, source_items=items, forget_after=FAR)

    return decoded


def land(store: Store, feed: Feed, batches: InMemoryBatches) -> None:
    table = open_table(store, feed)
    table.write(batches, partitions=table.plan().partitions, run_id="run")


def replay(store: Store, feed: Feed, still: Sequence[int] = ()) -> tuple[int, dict[str, int]]:
    done = open_table(store, feed).replay(letters([]), None, decode_items=decode(still))
    return done.rows_added, dict(done.stayed)


def landed(store: Store, feed: Feed) -> list[int]:
    return sorted(open_table(store, feed).scan().read_all()["id"].to_pylist())


def waiting(store: Store, feed: Feed) -> list[QuarantinedRow]:
    return [row for _, row in open_table(store, feed).quarantined()]


def test_what_was_broken_is_landed_once_mended_and_known_when_it_comes_again(local_store, feed):
    land(local_store, feed, letters(range(40), broken=[3, 30, 31]))
    assert replay(local_store, feed, still=[31]) == (2, {BROKEN: 1})
    assert landed(local_store, feed) == [n for n in range(40) if n != 31]
    assert [row.position for row in waiting(local_store, feed)] == ["letter 31"]

    land(local_store, feed, letters(range(40)))  # the queue gives all of them again
    assert landed(local_store, feed) == list(range(40))
    assert replay(local_store, feed) == (0, {}), "it is there, and was taken out"
    assert waiting(local_store, feed) == []
    assert landed(local_store, feed) == list(range(40))


def test_a_letter_with_lines_of_several_receptions_is_landed_once(local_store, feed):
    late = feed_since("2025-01-02", feed.format.type)
    land(local_store, late, letters(range(5), broken=[3]))
    land(local_store, late, letters([3, 4]))  # decoded by now, and before the start
    assert len({row.identity for row in waiting(local_store, feed)}) == 6
    assert replay(local_store, feed) == (5, {})
    assert landed(local_store, feed) == list(range(5))
    assert waiting(local_store, feed) == []


def test_a_letter_that_may_have_been_forgotten_stays(local_store, feed, monkeypatch):
    soon = local_store.now() + timedelta(hours=2)
    land(local_store, feed, letters([1, 2], broken=[1], until=soon))
    land(local_store, feed, letters([1], until=soon))  # landed from the queue; and forgotten, below
    real = type(local_store).now
    monkeypatch.setattr(type(local_store), "now", lambda self: real(self) + timedelta(hours=4))
    assert replay(local_store, feed) == (0, {HELD: 1})
    assert landed(local_store, feed) == [1, 2]


def test_lines_of_earlier_releases_stay(local_store, feed):
    old = RejectedRow(b"{", BROKEN, "letter 9")
    batch = SourceBatch(rows([0]), rejected=(old,), source_items=pa.array(["letter 0"]), forget_after=FAR)
    land(local_store, feed, InMemoryBatches((batch,), "rowtime"))
    assert replay(local_store, feed) == (0, {NO_ORIGIN: 1})


def test_bytes_that_are_no_text_come_back_as_they_were():
    row = QuarantinedRow.of(put_aside(7), epoch=None)
    assert row.raw == "\\xff7"
    again = QuarantinedRow.from_line(row.to_line())
    assert (again, again.content, again.rejected.origin) == (row, b"\xff7", put_aside(7).origin)


def test_a_horizon_can_be_raised_and_not_be_lowered(local_store):
    registry = FeedRegistry(local_store)
    document = {"name": "q", "kind": "stream", "source": {"type": "sqs", "queue": "q", "horizon": "P14D"}}
    feed = registry.add(parse_feed(json.dumps(document)))

    def with_horizon(days: int) -> Feed:
        return feed.model_copy(update={"source": feed.source.model_copy(update={"horizon": timedelta(days=days)})})

    assert registry.update(with_horizon(30), expected_revision=1).source.remembers == timedelta(days=30)
    with pytest.raises(InvalidFeed, match=r"source\.horizon can be raised, and not be lowered"):
        registry.update(with_horizon(20), expected_revision=2)


def test_feeds_that_are_merged_by_key_have_none(local_store, feed):
    merged = feed.model_copy(update={"write": "merge", "key": ("id",)})
    with pytest.raises(ConfigError, match="merges changes by key"):
        open_table(local_store, merged).replay(letters([]), None, decode_items=decode())


def test_a_replay_that_dies_at_any_change_is_finished_by_the_next(local_store, feed):
    dead = 0
    for step in itertools.count(1):
        mortal = MortalStore(local_store)
        land(local_store, feed, letters([step * 100 + n for n in range(40)], broken=[step * 100, step * 100 + 30]))
        mortal.left, mortal.after = step, step % 2 == 0
        try:
            replay(mortal, feed)  # type: ignore[arg-type]
        except Killed:
            dead += 1
            assert max(Counter(landed(local_store, feed)).values()) == 1
            replay(local_store, feed)
        else:
            break
        assert waiting(local_store, feed) == []
    wanted = [each * 100 + n for each in range(1, step + 1) for n in range(40)]
    assert landed(local_store, feed) == wanted
    assert dead > 5


@pytest.mark.parametrize("seed", range(2))
def test_histories_of_queue_replays_and_deaths_land_each_letter_once(local_store, feed, seed):
    chance, everything = random.Random(seed), list(range(60))
    broken = chance.sample(everything, 20)
    for _ in range(12):
        some = chance.sample(everything, chance.randrange(1, 30))
        mended = chance.sample(broken, chance.randrange(len(broken)))
        mortal = MortalStore(local_store)
        mortal.left, mortal.after = chance.choice([-1, chance.randrange(1, 25)]), chance.random() < 0.5
        try:
            if chance.random() < 0.5:
                land(mortal, feed, letters(some, broken=[n for n in broken if n not in mended]))  # type: ignore[arg-type]
            else:
                replay(mortal, feed, still=[n for n in broken if n not in mended])  # type: ignore[arg-type]
        except Killed:
            pass
        if open_table(local_store, feed).partitions():
            assert max(Counter(landed(local_store, feed)).values(), default=1) == 1
    land(local_store, feed, letters(everything, broken=broken))
    replay(local_store, feed)
    assert landed(local_store, feed) == everything
    assert waiting(local_store, feed) == []
    assert START.year == 2025

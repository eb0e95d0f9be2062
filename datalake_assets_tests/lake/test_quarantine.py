"""Rows in quarantine: counted once each, and landed exactly once when the feed was mended, whatever dies in between."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from datalake_assets.core.batches import InMemoryBatches, ReadRequest, RejectedRow, SourceBatch
from datalake_assets.core.position import (
    Holes,
    OffsetsPosition,
    SourcePartition,
    number_arrays,
    position_from_json,
    row_position,
)
from datalake_assets.core.row_texts import QuarantinedRow, row_from_text, row_to_text, rows_to_text
from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.lake.hive import HiveTable
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.quarantined_rows import quarantined_rows, reasons, take_out, write_lines
from datalake_assets.lake.replay import NOT_NUMBERED, NOT_PASSED, OTHER_EPOCH
from datalake_assets.lake.store.base import Store
from datalake_assets_tests.lake.feeds import SCHEMA, START, numbered, stream_feed, stream_of, table_feed
from datalake_assets_tests.lake.hive_tables import between_commits, export, ids
from datalake_assets_tests.lake.mortal_store import Killed, MortalStore


def lines_of(store: Store, feed: Feed) -> list[dict[str, Any]]:
    found = sorted(info.key for info in store.list(f"quarantine/{feed.path}"))
    return [json.loads(line) for key in found for line in store.get(key)[0].splitlines()]


def replayed(store: Store, feed: Feed, decode: Any = None) -> tuple[int, dict[str, int]]:
    done = HiveTable(store, feed).replay(stream_of(numbered([])), decode)
    return done.rows_added, dict(done.stayed)


def decoded(raws: Sequence[bytes]) -> SourceBatch:
    """What a mended source makes of rows that were sent as their offset in a list."""
    return numbered([json.loads(raw)[0] for raw in raws])


def undecodable(*offsets: int) -> list[RejectedRow]:
    return [RejectedRow(f"[{offset}]".encode(), "not a row", f"0:{offset}") for offset in offsets]


def without(*left_out: int, of: int) -> list[int]:
    return [each for each in range(of) if each not in left_out]


def test_rows_before_the_start_come_back_when_it_is_lowered(store: Store):
    late = stream_feed(start="2025-01-03")
    export(HiveTable(store, late), stream_of(numbered(range(72))))
    assert ids(HiveTable(store, late)) == list(range(48, 72))

    landed = replayed(store, stream_feed())

    assert landed == (48, {})
    assert ids(HiveTable(store, stream_feed())) == list(range(72))
    assert lines_of(store, late) == []
    assert replayed(store, stream_feed()) == (0, {})


def test_a_row_is_landed_below_the_position_that_passed_it_over(local_store: Store):
    feed = stream_feed()
    export(HiveTable(local_store, feed), stream_of(numbered(without(3, of=10), rejected=undecodable(3))))

    assert replayed(local_store, feed, decoded) == (1, {})
    assert ids(HiveTable(local_store, feed)) == list(range(10))
    assert replayed(local_store, feed, decoded) == (0, {})


def test_a_replay_that_begins_again_tells_what_it_had_committed(local_store: Store):
    """Rows of two days wait; another one lands that of the second when that of the first is in."""
    feed = stream_feed()
    export(HiveTable(local_store, feed), stream_of(numbered(without(3, 30, of=48), rejected=undecodable(3, 30))))

    def second(raws: Sequence[bytes]) -> SourceBatch:
        return dataclasses.replace(numbered([30]), rejected=tuple(undecodable(3)))

    with between_commits(lambda: replayed(local_store, feed, second)):
        done = HiveTable(local_store, feed).replay(stream_of(numbered([])), decoded)

    assert (done.rows_read, done.rows_added, done.rows_known, dict(done.stayed)) == (1, 1, 0, {})
    assert [(each.key, each.rows) for each in done.partitions] == [("2025-01-01", 24)]
    assert ids(HiveTable(local_store, feed)) == list(range(48))
    assert lines_of(local_store, feed) == []


def test_a_row_is_landed_in_a_partition_that_later_exports_moved_on(local_store: Store):
    """The last row of a day was rejected; the export after it could not know of it from its own read."""
    feed, table = stream_feed(), HiveTable(local_store, stream_feed())
    export(table, stream_of(numbered(range(3), rejected=undecodable(3))))
    export(table, stream_of(numbered(range(4, 10)), request=ReadRequest(start_offsets={0: 4})))

    assert replayed(local_store, feed, decoded) == (1, {})
    assert ids(table) == list(range(10))


def test_what_still_does_not_fit_stays_and_comes_later(local_store: Store):
    feed = stream_feed(start="2025-01-02")
    export(HiveTable(local_store, feed), stream_of(numbered(without(5, 30, of=48), rejected=undecodable(5, 30))))

    def still_broken(raws: Sequence[bytes]) -> SourceBatch:
        return dataclasses.replace(numbered([]), rejected=tuple(undecodable(*(json.loads(raw)[0] for raw in raws))))

    first = replayed(local_store, stream_feed(), still_broken)
    assert first == (23, {"not a row": 2})
    assert ids(HiveTable(local_store, feed)) == without(5, 30, of=48)

    assert replayed(local_store, stream_feed(), decoded) == (2, {})
    assert ids(HiveTable(local_store, feed)) == list(range(48))


def test_rows_without_a_decoder_stay(local_store: Store):
    feed = stream_feed()
    export(HiveTable(local_store, feed), stream_of(numbered(range(3), rejected=undecodable(3))))
    assert replayed(local_store, feed) == (0, {"its source cannot decode rows again": 1})
    assert len(lines_of(local_store, feed)) == 1


def test_a_read_from_the_beginning_doubles_no_replayed_row(local_store: Store):
    late, feed = stream_feed(start="2025-01-02"), stream_feed()
    everything = stream_of(numbered(without(7, of=30), rejected=undecodable(7)))
    export(HiveTable(local_store, late), everything)
    replayed(local_store, feed, decoded)

    export(HiveTable(local_store, feed), stream_of(numbered(range(30))))

    assert ids(HiveTable(local_store, feed)) == list(range(30))


def test_a_row_that_an_export_landed_after_all_is_not_landed_again(local_store: Store):
    """An export died after it had put a row aside; the next one could decode it."""
    feed, table = stream_feed(), HiveTable(local_store, stream_feed())
    broken = stream_of(numbered(range(3), rejected=undecodable(3)))
    fence_only = FeedFolder(local_store, feed)
    export(table, broken)
    fence_only.state.change(lambda now: dataclasses.replace(now, hint={}, rejected={}))  # as if it had died before
    export(table, stream_of(numbered(range(5))))
    assert ids(table) == list(range(5))

    landed, stayed = replayed(local_store, feed, decoded)

    assert (landed, sum(stayed.values())) == (0, 1)
    assert ids(table) == list(range(5))


def test_rows_that_no_export_has_passed_are_left_to_the_next_one(local_store: Store):
    feed, table = stream_feed(), HiveTable(local_store, stream_feed())
    export(table, stream_of(numbered(range(3), rejected=undecodable(3))))
    FeedFolder(local_store, feed).state.change(lambda now: dataclasses.replace(now, hint={0: 3}))
    assert replayed(local_store, feed, decoded) == (0, {NOT_PASSED: 1})


def test_rows_of_a_topic_that_is_no_more_stay(local_store: Store):
    feed, table = stream_feed(), HiveTable(local_store, stream_feed())
    export(table, stream_of(numbered(range(3), rejected=undecodable(3))))
    export(table, stream_of(numbered(range(2)), request=ReadRequest(new_epoch=True), recreated=True))
    assert replayed(local_store, feed, decoded) == (0, {OTHER_EPOCH: 1})


def test_rows_whose_numbers_are_unknown_stay(local_store: Store):
    feed, table = stream_feed(), HiveTable(local_store, stream_feed())
    export(table, stream_of(numbered(range(3), rejected=[RejectedRow(b"{", "cut", "line:4@ab")])))
    assert replayed(local_store, feed, decoded) == (0, {NOT_NUMBERED: 1})


@pytest.mark.parametrize("feed", [stream_feed("pull"), table_feed()], ids=["pull", "table"])
def test_feeds_that_are_pulled_whole_say_how_their_rows_come(local_store: Store, feed: Feed):
    with pytest.raises(ConfigError, match="'datalake export --"):
        HiveTable(local_store, feed).replay(stream_of(numbered([])), None)


def test_lines_of_earlier_releases_are_landed(local_store: Store):
    """They say neither their epoch nor whether they were decoded."""
    late = stream_feed(start="2025-01-02")
    export(HiveTable(local_store, late), stream_of(numbered(range(30))))
    folder = FeedFolder(local_store, late)
    folder.state.change(lambda now: dataclasses.replace(now, rejected={}))
    for info in list(local_store.list(folder.quarantine)):
        old = [json.loads(line) for line in local_store.get(info.key)[0].splitlines()]
        kept = [json.dumps({name: each[name] for name in ("raw", "reason", "position")}) for each in old]
        local_store.put(info.key, "\n".join(kept).encode() + b"\n")

    assert replayed(local_store, stream_feed()) == (24, {})
    assert ids(HiveTable(local_store, late)) == list(range(30))


def test_reasons_count_a_row_once(local_store: Store):
    feed, table = stream_feed(), HiveTable(local_store, stream_feed())
    first = [*undecodable(3, 4), RejectedRow(b"x", "other", "0:5")]
    export(table, stream_of(numbered(range(3), rejected=first)))
    again = [RejectedRow(b"[3]", "another reason", "0:3")]
    export(table, stream_of(numbered([], rejected=again)))

    found = {each.reason: each.rows for each in reasons(table.quarantined())}

    assert sum(found.values()) == 3
    assert len(lines_of(local_store, feed)) == 4


def test_many_rejected_rows_keep_the_manifest_small(local_store: Store):
    """Every second row is bad: more holes than a position keeps. The lowest are given up, and never guessed."""
    feed, table = (
        stream_feed("offsets", partition_by="month"),
        HiveTable(local_store, stream_feed(partition_by="month")),
    )
    odd = [each for each in range(700) if each % 2]
    export(table, stream_of(numbered([each for each in range(701) if not each % 2], rejected=undecodable(*odd))))
    size = len(local_store.get("control/streams/s/year=2025/month=01/manifest.json")[0])

    landed, stayed = replayed(local_store, feed, decoded)

    assert size < 10_000
    assert landed == 200
    assert sum(stayed.values()) == 150
    assert len(ids(table)) == 351 + 200
    assert len(lines_of(local_store, feed)) == 150


def test_values_of_every_type_come_back_as_they_were(local_store: Store):
    schema = pa.schema(
        [
            ("f", pa.float64()),
            ("d", pa.decimal128(20, 4)),
            ("b", pa.binary()),
            ("t", pa.timestamp("us", "UTC")),
            ("n", pa.timestamp("us")),
            ("day", pa.date32()),
            ("clock", pa.time64("us")),
            ("list", pa.list_(pa.float64())),
            ("map", pa.map_(pa.string(), pa.decimal128(5, 2))),
            ("struct", pa.struct([("x", pa.int64()), ("y", pa.binary())])),
            ("flag", pa.bool_()),
            ("big", pa.int64()),
            ("text", pa.string()),
        ]
    )
    values = [
        {
            "f": float("nan"),
            "d": Decimal("1234567890123456.7890"),
            "b": b"\x00\xff",
            "t": datetime(2025, 1, 1, 12, 30, 0, 5, tzinfo=UTC),
            "n": datetime(1, 1, 1),  # noqa: DTZ001  a naive time
            "day": date(1, 1, 1),
            "clock": time(23, 59, 59, 999999),
            "list": [float("-inf"), None, 0.1 + 0.2],
            "map": [("k", Decimal("1.50")), ("", None)],
            "struct": {"x": 2**63 - 1, "y": b""},
            "flag": False,
            "big": -(2**63),
            "text": 'é\u2028"\n\\',
        },
        dict.fromkeys(schema.names),
    ]
    batch = pa.RecordBatch.from_pylist(values, schema=schema)
    texts = [row_to_text(row) for row in batch.to_pylist()]
    assert all(b"\n" not in text for text in texts)
    back = pa.RecordBatch.from_pylist([row_from_text(text, schema) for text in texts], schema=schema)
    assert back.slice(1).equals(batch.slice(1))
    assert [row_to_text(row) for row in back.to_pylist()] == texts
    assert back.drop_columns(["f"]).equals(batch.drop_columns(["f"]))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1_500, pa.time64("ns")),
        (86_399_999_999_999, pa.time64("ns")),
        (b"\x00\xff", pa.binary_view()),
        (b"\x00\xff", pa.dictionary(pa.int8(), pa.binary())),
        ([b"\x00\xff", None], pa.list_(pa.binary(), 2)),
        ([b"\x00\xff"], pa.list_view(pa.binary())),
        ([float("inf"), 1.0], pa.list_(pa.float64(), 2)),
    ],
    ids=str,
)
def test_texts_give_back_values_of_types_that_few_sources_have(value, kind):
    rows = pa.record_batch([pa.array([value, None], kind)], ["x"])
    back = [row_from_text(text, rows.schema)["x"] for text in rows_to_text(rows)]
    assert pa.array(back, kind).equals(rows["x"])


#: No number of Arrow's has so many bits.
LARGE = 2**186


@dataclasses.dataclass
class Topic:
    """A source: rows of four days in two partitions, some of which cannot be decoded before it was mended.

    Its partitions are numbers; or large ones, of names and offsets beyond 64 bits.
    """

    rng: random.Random
    is_large: bool = False
    rows: dict[int, list[tuple[int, bool]]] = dataclasses.field(default_factory=lambda: {0: [], 1: []})
    mended: bool = False

    def produce(self, count: int) -> None:
        for _ in range(count):
            partition = self.rng.randrange(2)
            self.rows[partition].append((self.rng.randrange(96), self.rng.random() < 0.3))

    def at(self, partition: int, offset: int) -> tuple[SourcePartition, int]:
        return (f"shard-{partition}", LARGE + offset) if self.is_large else (partition, offset)

    def start(self, partition: int, starts: Mapping[SourcePartition, int]) -> int:
        name, first = self.at(partition, 0)
        return starts.get(name, first) - first

    def identity(self, partition: int, offset: int) -> int:
        return partition * 10_000 + offset

    def batch(self, partition: int, offsets: Sequence[int], *, decodes: bool) -> SourceBatch:
        good = [each for each in offsets if decodes or not self.rows[partition][each][1]]
        times = [START + timedelta(hours=self.rows[partition][each][0]) for each in good]
        numbers = [self.identity(partition, each) for each in good]
        batch = pa.record_batch([pa.array(numbers, pa.int64()), pa.array(["n"] * len(good)), times], schema=SCHEMA)
        bad = [each for each in offsets if each not in good]
        rejected = [
            RejectedRow(f"[{partition},{each}]".encode(), "bad", row_position(*self.at(partition, each)))
            for each in bad
        ]
        numbered = [self.at(partition, each) for each in good]
        if self.is_large and not good:
            return SourceBatch(batch, pa.array([], pa.string()), pa.array([], pa.string()), tuple(rejected))
        return SourceBatch(batch, *number_arrays(numbered), tuple(rejected))

    def read(self, request: ReadRequest) -> InMemoryBatches:
        starts = request.start_offsets or {}
        batches = [
            self.batch(partition, range(self.start(partition, starts), len(self.rows[partition])), decodes=self.mended)
            for partition in self.rows
        ]
        return stream_of(*batches, request=request)

    def decode(self, raws: Sequence[bytes]) -> SourceBatch:
        at = [tuple(json.loads(raw)) for raw in raws]
        parts = [self.batch(p, [offset for q, offset in at if q == p], decodes=self.mended) for p in self.rows]
        return SourceBatch(
            pa.concat_batches([part.rows for part in parts]),
            pa.concat_arrays([part.source_partitions for part in parts]),
            pa.concat_arrays([part.source_offsets for part in parts]),
            tuple(row for part in parts for row in part.rejected),
        )


@pytest.mark.parametrize("seed", range(12))
def test_every_row_is_landed_once_whatever_dies_between_exports_and_replays(local_store: Store, seed: int):
    rng = random.Random(seed)
    store, topic, day = MortalStore(local_store), Topic(rng, is_large=seed % 2 == 1), 4
    topic.produce(30)

    def export_all(feed: Feed) -> None:
        table = HiveTable(store, feed)  # type: ignore[arg-type]  it does what a store does
        plan = table.plan()
        table.write(topic.read(plan.request), partitions=plan.partitions, run_id="run")

    def replay_all(feed: Feed) -> dict[str, int]:
        return dict(HiveTable(store, feed).replay(topic.read(ReadRequest()), topic.decode).stayed)  # type: ignore[arg-type]

    def landed() -> Counter[int]:
        store.left = -1
        table = HiveTable(local_store, stream_feed())
        return Counter(ids(table) if table.partitions() and table.scan().schema.names else ())

    for _ in range(25):
        feed = stream_feed(start=str(START.date() + timedelta(days=day)))
        store.left, store.after = rng.choice([-1, rng.randrange(1, 40)]), rng.random() < 0.5
        try:
            match rng.randrange(5):
                case 0:
                    topic.produce(rng.randrange(1, 12))
                case 1 | 2:
                    export_all(feed)
                case 3:
                    replay_all(feed)
                case 4:
                    day, topic.mended = rng.randrange(5), rng.random() < 0.5
        except Killed:
            pass
        assert set(landed().values()) <= {1}

    store.left, topic.mended = -1, True
    export_all(stream_feed())
    stayed = replay_all(stream_feed())
    everything = {topic.identity(p, offset) for p, sent in topic.rows.items() for offset in range(len(sent))}
    found = landed()
    assert set(found.values()) == {1}
    assert set(found) == everything, stayed


def test_position_with_holes_survives_its_json():
    position = OffsetsPosition({0: (1, 9)}, {0: Holes(((2, 3), (7, 7)), 1)})
    assert position_from_json(json.loads(json.dumps(position.to_json()))) == position


def test_rows_of_a_feed_are_listed_with_their_partition(local_store: Store):
    feed = stream_feed(start="2025-01-02")
    export(HiveTable(local_store, feed), stream_of(numbered(range(25), rejected=undecodable(25))))
    found = Counter(path for path, _ in HiveTable(local_store, feed).quarantined())
    assert found == {"year=2025/month=01/day=01": 24, "_unknown": 1}


@pytest.mark.parametrize("others", [(1,), (1, 3), (0,), (0, 1, 2, 3)])
def test_lines_that_several_take_out_at_once_are_gone_and_no_others(local_store, others):
    """Between the reading of an object and its replacement the others do all of their work."""
    folder = "quarantine/streams/s"
    rows = [QuarantinedRow(f'{{"id":{number}}}', "?", f"0:{number}", 0, decoded=True) for number in range(4)]
    write_lines(local_store, f"{folder}/_unknown", [row.to_line() for row in rows])
    begun = []

    def first(_: str, found: Sequence[QuarantinedRow]) -> list[bool]:
        if not begun:
            begun.append(True)
            for number in others:
                take_out(local_store, folder, lambda _, each, at=f"0:{number}": [row.position == at for row in each])
        return [row.position == "0:0" for row in found]

    take_out(local_store, folder, first)
    left = [row.position for _, row in quarantined_rows(local_store, folder)]
    assert left == [f"0:{number}" for number in range(4) if number not in {0, *others}]

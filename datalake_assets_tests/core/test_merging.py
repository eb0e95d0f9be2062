"""Which change of a key is the newest, and which columns can say so."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.core.merging import MergeRule, key_texts, merged_columns, newest_changes, row_of_change
from datalake_assets.errors import InvalidFeed
from datalake_assets.feed import Feed, parse_feed

COLUMNS = pa.schema(
    [("id", pa.int64()), ("name", pa.string()), ("share", pa.float64()), ("rowtime", pa.timestamp("ms"))]
)


def feed_of(**merge: Any) -> Feed:
    document = {"name": "s", "kind": "stream", "source": {"type": "ksqldb", "object": "S"}}
    return parse_feed(json.dumps(document | {"write": "merge", "key": ["id"], "merge": merge}))


@given(st.lists(st.tuples(st.binary(max_size=3), st.text(max_size=3)), max_size=8))
def test_key_texts_are_equal_if_and_only_if_all_values_are(rows: list[tuple[bytes, str]]):
    columns = [pa.array([row[0] for row in rows], pa.binary()), pa.array([row[1] for row in rows], pa.string())]
    assert len(set(key_texts(columns).to_pylist())) == len(set(rows))


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, -1, 2**63 - 1]),
        pa.array([True, False]),
        pa.array([Decimal("1.50"), Decimal("-1.50")]),
        pa.array([0, 1, -1], pa.timestamp("us", "UTC")),
        pa.array([0, 86_400_000], pa.date64()),
        pa.array([0, 1], pa.time32("s")),
        pa.array([b"ab", b"ba"], pa.binary(2)),
        pa.array(["a", "b", "a"]).dictionary_encode(),
        pa.array(["", "\0", "ä"], pa.large_string()),
    ],
)
def test_key_texts_tell_values_of_each_type_apart(values: pa.Array):
    assert len(set(key_texts([values]).to_pylist())) == len(set(values.to_pylist()))


@given(
    changes=st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 2), st.integers(0, 1)), min_size=1, max_size=12),
    ordered=st.booleans(),
)
def test_newest_change_is_that_of_a_loop(changes: list[tuple[int, int, int]], *, ordered: bool):
    offsets = np.arange(len(changes), dtype=np.int64)
    partitions = np.array([change[2] for change in changes], dtype=np.int64)
    order = pa.array([change[1] for change in changes]) if ordered else None
    keys = key_texts([pa.array([change[0] for change in changes])])
    newest: dict[int, tuple[tuple[int, ...], int]] = {}
    for offset, (key, version, partition) in enumerate(changes):
        rank = (version, partition, offset) if ordered else (partition, offset)
        newest[key] = max(newest.get(key, (rank, offset)), (rank, offset))
    found = newest_changes(keys, order, partitions, offsets)
    assert sorted(found.tolist()) == sorted(offset for _, offset in newest.values())


def test_tombstone_has_nothing_but_its_key_and_its_timestamp():
    rows = pa.RecordBatch.from_pylist(
        [{"id": 1, "rowtime": 5}, {"id": 2, "name": ""}, {"id": 3, "share": 0.0}], COLUMNS
    )
    assert MergeRule.of(feed_of()).deletions(rows, rows.schema.names).tolist() == [True, False, False]


def test_columns_that_the_source_sends_no_more_make_no_tombstone():
    rows = pa.RecordBatch.from_pylist([{"id": 1, "rowtime": 5}], COLUMNS)
    assert MergeRule.of(feed_of()).deletions(rows, ["id", "rowtime"]).tolist() == [False]


@pytest.mark.parametrize(("kind", "values"), [(pa.bool_(), [True, False, None]), (pa.int8(), [1, 0, None])])
def test_deletions_are_marked_by_values_of_any_plain_type(kind: pa.DataType, values: list[Any]):
    rows = pa.record_batch([pa.array([1, 2, 3]), pa.array(values, kind), pa.array([7, 7, 7])], ["id", "gone", "x"])
    rule = MergeRule.of(feed_of(delete_column="gone", delete_values=["true", "1"]))
    assert rule.deletions(rows, rows.schema.names).tolist() == [True, False, False]


@pytest.mark.parametrize(
    ("key", "merge", "reason"),
    [
        (["ID"], {}, "key: there is no column 'ID'; there are id, name, share, rowtime"),
        (["share"], {}, "key: column 'share' is of type double, whose values name no row"),
        (["id"], {"order_by": "version"}, "order_by: there is no column 'version'; there are id, name, share, rowtime"),
        (["id"], {"order_by": "share"}, "order_by: column 'share' is of type double, whose values have no order"),
        (
            ["id"],
            {"delete_column": "share"},
            "delete_column: column 'share' is neither text, nor a number, nor true or false",
        ),
        (["id"], {"envelope": "debezium"}, "envelope: there is no column 'before'; there are id, name, share, rowtime"),
    ],
)
def test_columns_that_cannot_be_merged_are_refused(key: list[str], merge: dict[str, Any], reason: str):
    feed = feed_of(**merge).model_copy(update={"key": tuple(key)})
    with pytest.raises(InvalidFeed) as refused:
        merged_columns(feed, COLUMNS)
    assert refused.value.reason == reason


ROW = pa.struct([("ID", pa.int64()), ("NAME", pa.string())])
ENVELOPE = pa.schema([("before", ROW), ("after", ROW), ("op", pa.string()), ("ts_ms", pa.int64())])


def test_envelope_gives_the_row_after_a_change_and_the_one_before_a_deletion():
    changes = [
        {"before": None, "after": {"ID": 1, "NAME": "a"}, "op": "c", "ts_ms": 5},
        {"before": {"ID": 1, "NAME": None}, "after": None, "op": "d", "ts_ms": 6},
        {"before": None, "after": None, "op": "t", "ts_ms": 7},
    ]
    feed = feed_of(envelope="debezium", order_by="ts_ms").model_copy(update={"key": ("id",)})
    schema = merged_columns(feed, ENVELOPE)
    rows = row_of_change(pa.RecordBatch.from_pylist(changes, ENVELOPE), schema)
    assert rows.to_pylist() == [
        {"id": 1, "name": "a", "op": "c", "ts_ms": 5},
        {"id": 1, "name": None, "op": "d", "ts_ms": 6},
        {"id": None, "name": None, "op": "t", "ts_ms": 7},
    ]
    assert MergeRule.of(feed).deletions(rows, rows.schema.names).tolist() == [False, True, False]


def test_envelope_is_refused_whose_row_has_a_column_of_its_own():
    row = pa.struct([("id", pa.int64()), ("op", pa.string())])
    schema = pa.schema([("before", row), ("after", row), ("op", pa.string())])
    with pytest.raises(InvalidFeed, match="column 'op' is there twice"):
        merged_columns(feed_of(envelope="debezium"), schema)


def test_envelope_finds_columns_by_name_where_before_and_after_differ_in_order():
    before, after = (pa.struct([(name, pa.string()) for name in names]) for names in (["name", "id"], ["id", "name"]))
    schema = pa.schema([("before", before), ("after", after), ("op", pa.string())])
    changes = [{"before": {"id": "1", "name": "2"}, "after": None, "op": "d"}]
    feed = feed_of(envelope="debezium").model_copy(update={"key": ("id",)})
    rows = row_of_change(pa.RecordBatch.from_pylist(changes, schema), merged_columns(feed, schema))
    assert rows.to_pylist() == [{"id": "1", "name": "2", "op": "d"}]


def test_envelope_is_refused_whose_before_is_no_row():
    schema = pa.schema([("before", pa.string()), ("after", ROW), ("op", pa.string())])
    with pytest.raises(InvalidFeed, match="before and after are not rows of the same columns"):
        merged_columns(feed_of(envelope="debezium"), schema)

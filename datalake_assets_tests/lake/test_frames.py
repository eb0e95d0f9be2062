"""Frames of whatever library become the same columns of the lake, and no value changes on the way."""

from __future__ import annotations

from datetime import UTC, date, datetime, time

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalake_assets.errors import ConfigError
from datalake_assets.lake.frames import BATCH_ROWS, FrameBatches, frame_schema, lake_type, to_lake, typed_nulls

UTC_US = pa.timestamp("us", "UTC")
UNITS = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
TEXTS = (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.large_string()))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (pa.int8(), pa.int8()),
        (pa.uint64(), pa.uint64()),
        (pa.float16(), pa.float32()),
        (pa.bool_(), pa.bool_()),
        (pa.large_string(), pa.string()),
        (pa.string_view(), pa.string()),
        (pa.large_binary(), pa.binary()),
        (pa.binary(4), pa.binary(4)),
        (pa.date32(), pa.date32()),
        (pa.date64(), pa.date32()),
        (pa.time32("s"), pa.time32("ms")),
        (pa.time64("ns"), pa.time64("us")),
        (pa.timestamp("s"), pa.timestamp("us")),
        (pa.timestamp("ns", "Europe/Berlin"), UTC_US),
        (pa.decimal32(9, 2), pa.decimal128(9, 2)),
        (pa.decimal128(38, 2), pa.decimal128(38, 2)),
        (pa.decimal256(50, 2), pa.decimal256(50, 2)),
        (pa.dictionary(pa.uint32(), pa.string_view()), pa.string()),
        (pa.large_list(pa.large_string()), pa.list_(pa.string())),
        (pa.list_view(pa.timestamp("ms", "UTC")), pa.list_(UTC_US)),
        (pa.list_(pa.float16(), 3), pa.list_(pa.float32(), 3)),
        (pa.map_(pa.large_string(), pa.date64()), pa.map_(pa.string(), pa.date32())),
        (
            pa.struct([pa.field("a", pa.dictionary(pa.int8(), pa.string()), nullable=False)]),
            pa.struct([pa.field("a", pa.string())]),
        ),
    ],
    ids=str,
)
def test_type_becomes_the_one_that_every_reader_knows(kind: pa.DataType, expected: pa.DataType):
    assert lake_type(kind) == expected
    assert lake_type(expected) == expected, "it is a fixed point"


@pytest.mark.parametrize(
    "kind",
    [
        pa.duration("s"),
        pa.month_day_nano_interval(),
        pa.struct([]),
        pa.list_(pa.duration("us")),
        pa.run_end_encoded(pa.int32(), pa.string()),
        pa.uuid(),
        pa.sparse_union([pa.field("a", pa.int8())]),
    ],
    ids=str,
)
def test_type_that_readers_do_not_know_is_refused_with_its_column(kind: pa.DataType):
    with pytest.raises(ConfigError, match=r"asset 'a/b': column 'odd' is .*; convert it to numbers, times or text"):
        frame_schema(pa.schema([("fine", pa.int64()), ("odd", kind)]), asset="a/b")


def landed(values: pa.Array) -> pa.Array:
    batch = pa.record_batch({"column": values})
    return to_lake(batch, frame_schema(batch.schema, asset="a"), asset="a").column(0)


@given(values=st.lists(st.none() | st.text(max_size=5), min_size=1), kind=st.sampled_from(TEXTS))
def test_texts_stay_what_they_are(values: list[str | None], kind: pa.DataType):
    encoded = pa.array(values, pa.large_string())
    frame = encoded.dictionary_encode() if pa.types.is_dictionary(kind) else encoded.cast(kind)

    assert landed(frame).to_pylist() == values


@given(
    moments=st.lists(st.none() | st.datetimes(min_value=datetime(1900, 1, 1), max_value=datetime(2200, 1, 1))),  # noqa: DTZ001  the zone is added
    unit=st.sampled_from(sorted(UNITS)),
    zone=st.sampled_from([None, "UTC", "Europe/Berlin", "Asia/Kolkata"]),
)
def test_times_stay_the_same_moments(moments: list[datetime | None], unit: str, zone: str | None):
    whole = [None if each is None else each.replace(microsecond=0, tzinfo=UTC) for each in moments]
    ticks = [None if each is None else int(each.timestamp()) * UNITS[unit] for each in whole]

    found = landed(pa.array(ticks, pa.int64()).cast(pa.timestamp(unit, zone)))

    assert found.type == pa.timestamp("us", "UTC" if zone else None)
    assert found.cast(pa.int64()).to_pylist() == [
        None if each is None else int(each.timestamp()) * 10**6 for each in whole
    ]


def test_nested_and_odd_values_stay_what_they_are():
    values = {
        "d": [date(2026, 1, 1), None],
        "t": [time(1, 2, 3), None],
        "l": [["x"], None],
        "s": [{"a": "x"}, None],
        "f": [1.5, None],
    }
    batch = pa.record_batch(
        [
            pa.array(values["d"], pa.date64()),
            pa.array(values["t"], pa.time32("s")),
            pa.array(values["l"], pa.large_list(pa.large_string())),
            pa.StructArray.from_arrays(
                [pa.array(["x", None]).dictionary_encode()], ["a"], mask=pa.array([False, True])
            ),
            pa.array(values["f"], pa.float16()),
        ],
        names=list(values),
    )

    assert to_lake(batch, frame_schema(batch.schema, asset="a"), asset="a").to_pydict() == values


def test_nanoseconds_that_would_be_lost_are_refused():
    with pytest.raises(ConfigError, match=r"column 'column' \(timestamp\[ns\]\) cannot be kept exactly .*; round or"):
        landed(pa.array([1_001], pa.timestamp("ns")))


def test_columns_of_nulls_take_the_type_that_is_known_and_are_refused_without():
    frame = pa.schema([("a", pa.null()), ("b", pa.list_(pa.null())), ("c", pa.int64())])
    known = pa.schema([("a", pa.string()), ("b", pa.list_(pa.date32())), ("c", pa.int64())])

    assert typed_nulls(frame, known, asset="a") == known
    with pytest.raises(ConfigError, match="column 'b' has nothing but nulls"):
        typed_nulls(frame, known.remove(1), asset="a")
    with pytest.raises(ConfigError, match="column 'a' has nothing but nulls"):
        typed_nulls(frame, None, asset="a")


def test_batches_are_handed_on_in_pieces_and_as_often_as_they_are_asked_for():
    table = pa.table({"id": range(2 * BATCH_ROWS + 1)})
    batches = FrameBatches("a", table.schema, None, False, table.combine_chunks().to_batches)

    for _ in range(2):
        pieces = [each.rows.num_rows for each in batches]
        assert pieces == [BATCH_ROWS, BATCH_ROWS, 1]


def test_wide_rows_make_small_pieces():
    table = pa.table({"text": ["x" * 100_000] * 500})
    batches = FrameBatches("a", table.schema, None, False, table.to_batches)

    assert max(each.rows.nbytes for each in batches) < 10 << 20
    assert sum(each.rows.num_rows for each in batches) == 500

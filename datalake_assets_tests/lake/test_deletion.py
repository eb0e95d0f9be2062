"""Rows that a condition is true of are deleted, all of them and no others, whoever works on the same partition."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.core.batches import InMemoryBatches, ReadRequest, RejectedRow, SourceBatch
from datalake_assets.core.row_texts import QuarantinedRow
from datalake_assets.errors import ConfigError, DatalakeError
from datalake_assets.feed import ColumnNote
from datalake_assets.lake.deletion import waiting_rows
from datalake_assets.lake.iceberg import transactions
from datalake_assets.lake.layout import quarantine_folder
from datalake_assets.lake.quarantined_rows import write_lines
from datalake_assets.lake.row_conditions import open_condition
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.local import LocalStore
from datalake_assets.lake.tables import open_table
from datalake_assets.testing.table_cases import FORCE
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of, table_feed, table_of
from datalake_assets_tests.lake.hive_tables import export, folder_ids, ids, listed
from datalake_assets_tests.lake.store_kills import kill_points

DAY = "2025-01-01"
COLUMNS = pa.schema(
    [
        ("id", pa.int64()),
        ("name", pa.string()),
        ("tags", pa.list_(pa.int64())),
        ("moment", pa.timestamp("us", "UTC")),
        ("current_date", pa.string()),
        ("where", pa.string()),
    ]
)
ROWS = pa.table(
    [
        pa.array([1, 2, 3, None]),
        pa.array(["a", "b) OR (true", None, "--"]),
        pa.array([[1], [], None, [2, 3]]),
        pa.array([datetime(2025, 1, day, tzinfo=UTC) for day in (1, 2, 3, 4)]),
        pa.array(["x", None, "y", "x"]),
        pa.array(["w", "w", None, "v"]),
    ],
    schema=COLUMNS,
)


@pytest.mark.parametrize(
    ("text", "matching"),
    [
        ("id > 1", [1, 2]),
        ("NOT (id > 1)", [0]),
        ("id > 1 OR NULL", [1, 2]),
        ("id IS NULL", [3]),
        ("name = 'b) OR (true'", [1]),
        ("id = 1 -- and not more", [0]),
        ("id = 1 /* ( */", [0]),
        ("ID = 1 AND data.Id = 1", [0]),
        ("moment >= '2025-01-03' AND moment < TIMESTAMPTZ '2025-01-04 00:00:00+00'", [2]),
        ("len(list_filter(tags, lambda each: each > 2)) = 1", [3]),
        ("current_date = 'x'", [0, 3]),
        ("\"where\" = 'w'", [0, 1]),
        ("regexp_matches(name, '^[ab]') AND id BETWEEN 1 AND 2", [0, 1]),
        ("hash(id) = hash(3) OR nullif(id, 1) = 2", [1, 2]),
        ("try_cast(name AS INT) = 3", []),
    ],
)
def test_a_condition_is_true_of_rows_as_in_a_query(text, matching):
    with open_condition(text, COLUMNS) as condition:
        assert condition.matching(ROWS).nonzero()[0].tolist() == matching


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "give one condition"),
        ("true)", "syntax error"),
        ("id = 1) OR (id = 2", "give one condition"),
        ("id = 1; DELETE FROM data", "give one|syntax error"),
        ("id = 1 ORDER BY id", "syntax error"),
        ("id = 1 GROUP BY id", "syntax error"),
        ("id = 1 LIMIT 1", "syntax error"),
        ("true UNION SELECT * FROM data", "syntax error"),
        ("id", "no condition but a value of type BIGINT"),
        ("'true'", "no condition but a value"),
        ("NULL", "no condition but a value"),
        ("id IN (SELECT id FROM data)", "a query in it"),
        ("EXISTS (FROM data)", "a query in it"),
        ("id = (SELECT max(id) FROM read_parquet('/etc/passwd'))", "not offered here|a query in it"),
        ("COLUMNS(*) = 3", r"a \* in it"),
        ("random() < 0.5", "function 'random' has another answer"),
        ("moment < now()", "function 'now' has another answer"),
        ("moment < current_timestamp", "names 'current_timestamp'; the feed has id"),
        ("moment::DATE < today()", "function 'today' has another answer"),
        ("moment < ago(INTERVAL 1 DAY)", "function 'ago' has another answer"),
        ("name = gen_random_uuid()::VARCHAR", "has another answer"),
        ("name = getvariable('x')", "has another answer"),
        ("name = current_setting('threads')", "has another answer"),
        ("count(*) > 1", "aggregate"),
        ("row_number() OVER () = 1", "window"),
        ("id = $1", "parameter"),
        ("nothing = 1", "names 'nothing'; the feed has id, name"),
        ('"row number" = 1', "names 'row number'"),
        ("data::VARCHAR LIKE '%1%'", "'data' is not one column of the feed"),
        ("\ud800 = 1", "UTF-8"),
        ("(" * 5000 + "true" + ")" * 5000, "deep|expression|syntax|stack|memory"),
    ],
)
def test_what_is_no_condition_on_each_row_by_itself_is_refused(text, reason):
    with (
        pytest.raises(ConfigError, match=f"^the condition cannot be used: .*({reason})"),
        open_condition(text, COLUMNS),
    ):
        pass


def test_a_value_that_cannot_be_converted_refuses_the_condition_and_nothing_is_deleted(local_store):
    table = filled(local_store, stream_feed())
    before = listed(local_store, "streams/s")
    with pytest.raises(ConfigError, match=r"the condition cannot be used: Conversion Error: .*n0"):
        table.delete_rows(DAY, "note::INT = 3")
    assert listed(local_store, "streams/s") == before


def filled(store: Store, feed, *, parts: int = 2):
    """The feed with rows 0 to 29, each in one of some files; 24 rows are of the first day."""
    table = open_table(store, feed)
    step = 30 // parts
    for start in range(0, 30, step):
        export(table, stream_of(numbered(range(start, start + step))))
    return table


def digests(store: Store, folder: str) -> dict[str, str]:
    return {key: hashlib.sha256(store.get(key)[0]).hexdigest() for key in listed(store, folder)}


def test_files_without_such_rows_are_left_as_they_are(store):
    table = filled(store, stream_feed(), parts=3)
    before = digests(store, "streams/s")
    done = table.delete_rows(DAY, "id IN (3, 5)")
    after = digests(store, "streams/s")
    (name,) = done.matching
    assert done.matching == {name: 2}
    assert {key for key in before if after.get(key) != before[key]} == {
        key for key in before if key.endswith(f"/{name}")
    }
    assert len(after) == len(before)
    assert folder_ids(store, "streams/s") == [number for number in range(30) if number not in {3, 5}]


def test_a_file_of_which_no_row_stays_is_not_written_anew(local_store):
    table = filled(local_store, stream_feed(), parts=3)
    done = table.delete_rows(DAY, "id < 10 OR id = 12")
    assert sorted(done.matching.values()) == [1, 10]
    assert done.partition is not None
    assert (done.partition.files, done.partition.files_added) == (2, 1)


def test_rows_that_stay_keep_values_types_and_what_their_file_says_of_them(local_store):
    """Read by DuckDB and pyarrow alone; columns are of all kinds, with notes, and pages have statistics."""
    kinds = {
        "flag": pa.bool_(),
        "small": pa.int8(),
        "price": pa.decimal128(12, 2),
        "ratio": pa.float64(),
        "raw": pa.binary(),
        "day_of": pa.date32(),
        "nested": pa.struct([("a", pa.int32()), ("b", pa.list_(pa.string()))]),
    }
    schema = pa.schema([("id", pa.int64()), *kinds.items(), ("rowtime", pa.timestamp("ms", "UTC"))])
    count = 3000
    rows = [
        {
            "id": number,
            "flag": None if number % 7 == 0 else number % 2 == 0,
            "small": number % 100,
            "price": f"{number}.25",
            "ratio": float("nan") if number % 11 == 0 else number / 3,
            "raw": bytes([number % 256]),
            "day_of": datetime(2025, 1, 1 + number % 28, tzinfo=UTC).date(),
            "nested": None if number % 5 == 0 else {"a": number, "b": [None, str(number)]},
            "rowtime": datetime(2025, 1, 1, number % 24, tzinfo=UTC),
        }
        for number in range(count)
    ]
    columns = [
        pa.array([row[each.name] for row in rows]).cast(each.type)
        if each.name == "price"
        else pa.array([row[each.name] for row in rows], each.type)
        for each in schema
    ]
    feed = stream_feed(columns={"price": ColumnNote(description="what it cost", unit="EUR").model_dump()})
    batch = SourceBatch(
        pa.record_batch(columns, schema=schema), pa.array([0] * count, pa.int32()), pa.array(range(count), pa.int64())
    )
    table = open_table(local_store, feed)
    export(table, stream_of(batch))
    (key,) = listed(local_store, "streams/s")
    before = pq.ParquetFile(local_store.path(key))
    wanted = duckdb.sql(f"FROM '{local_store.path(key)}' WHERE NOT coalesce(id % 3 = 0, false) ORDER BY id").fetchall()
    told, kept = before.metadata.metadata, before.schema_arrow
    table.delete_rows(DAY, "id % 3 = 0")
    (key,) = listed(local_store, "streams/s")
    after = pq.ParquetFile(local_store.path(key))
    assert repr(duckdb.sql(f"FROM '{local_store.path(key)}' ORDER BY id").fetchall()) == repr(wanted)
    assert after.schema_arrow.equals(kept, check_metadata=True)
    assert after.schema.equals(before.schema)
    assert after.metadata.metadata.keys() == told.keys()
    assert after.metadata.metadata[b"datalake.position"] == told[b"datalake.position"]
    statistics = after.metadata.row_group(0).column(0).statistics
    assert (statistics.min, statistics.max, statistics.null_count) == (1, 2999, 0)


def test_an_export_does_not_land_again_what_was_deleted(local_store):
    table = filled(local_store, stream_feed())
    table.delete_rows(DAY, "id < 5")
    again = export(open_table(local_store, stream_feed()), stream_of(numbered(range(30))))
    assert (again.rows_added, again.rows_known, ids(table)) == (0, 30, list(range(5, 30)))
    export(open_table(local_store, stream_feed()), stream_of(numbered(range(30), partition=1)))
    assert len(ids(table)) == 55


def test_a_pull_of_unchanged_rows_brings_nothing_back_and_one_of_changed_rows_does(local_store):
    feed = stream_feed("pull")
    table = open_table(local_store, feed)
    first = SourceBatch(numbered(range(24)).rows)
    export(table, stream_of(first), [DAY])
    table.delete_rows(DAY, "id < 5")
    export(table, stream_of(first), [DAY])
    assert ids(table) == list(range(5, 24))
    export(table, stream_of(SourceBatch(numbered([*range(24), 23]).rows)), [DAY])
    assert ids(table) == sorted([*range(24), 23])


@pytest.mark.parametrize("form", ["parquet", "iceberg"])
def test_rows_are_deleted_of_every_version_of_a_table(local_store, form):
    feed = table_feed(format={"type": form})
    table = open_table(local_store, feed)
    for count in (10, 12, 14):
        export(table, table_of(count))
    for key in ("v1", "v3", "v2"):
        done = table.delete_rows(key, "id = 7")
        assert done.partition is not None
        assert (done.rows_deleted, done.partition.position["kind"]) == (1, "snapshot")
    for key, count in (("v1", 10), ("v2", 12), ("v3", 14)):
        assert ids(open_table(local_store, feed), partitions=[key]) == [i for i in range(count) if i != 7]
    assert ids(open_table(local_store, feed)) == [i for i in range(14) if i != 7]
    assert list(table.verify(deep=True)) == []
    export(open_table(local_store, feed), table_of(15))
    assert ids(open_table(local_store, feed)) == list(range(15))
    assert ids(open_table(local_store, feed), partitions=["v3"]) == [i for i in range(14) if i != 7]
    assert open_table(local_store, feed).partitions() == ("v1", "v2", "v3", "v4")


@pytest.mark.parametrize("form", ["parquet", "iceberg"])
def test_a_version_whose_rows_were_deleted_is_removed_by_retention_all_the_same(local_store, form):
    feed = table_feed(format={"type": form}, retention={"versions": 2})
    table = open_table(local_store, feed)
    for count in (10, 12):
        export(table, table_of(count))
    for key in ("v1", "v2"):
        table.delete_rows(key, "id = 7")
    export(open_table(local_store, feed), table_of(13))
    export(open_table(local_store, feed), table_of(14))
    table = open_table(local_store, feed)
    assert (table.partitions(), table.removed(["v1", "v2"])) == (("v3", "v4"), ("v1", "v2"))
    table.expire(all_past=True)
    assert list(table.verify(deep=True)) == []
    assert (ids(table), ids(table, partitions=["v3"])) == (list(range(14)), list(range(13)))


def in_between(monkeypatch, act) -> None:
    """Something that another process does once, when the first file is staged."""
    stage, waiting = LocalStore.stage, [act]

    def interrupted(store, key):
        if waiting:
            waiting.pop()()
        return stage(store, key)

    monkeypatch.setattr(LocalStore, "stage", interrupted)


@pytest.mark.parametrize("form", ["parquet", "iceberg"])
def test_a_deletion_begins_anew_when_its_files_are_merged_meanwhile(local_store, monkeypatch, form):
    feed = stream_feed(format={"type": form})
    table = filled(local_store, feed, parts=3)
    in_between(monkeypatch, lambda: open_table(local_store, feed).compact(DAY, FORCE))
    done = table.delete_rows(DAY, "id % 10 = 3")
    assert (done.rows_deleted, len(done.matching)) == (3, 1)
    assert ids(table) == [i for i in range(30) if (i < 24 and i % 10 != 3) or i >= 24]
    assert list(table.verify(deep=True)) == []


@pytest.mark.parametrize("form", ["parquet", "iceberg"])
def test_a_compaction_plans_anew_when_rows_are_deleted_meanwhile(local_store, monkeypatch, form):
    feed = stream_feed(format={"type": form})
    table = filled(local_store, feed, parts=3)
    in_between(monkeypatch, lambda: open_table(local_store, feed).delete_rows(DAY, "id % 10 = 3"))
    table.compact(DAY, FORCE)
    assert ids(open_table(local_store, feed)) == [i for i in range(30) if (i < 24 and i % 10 != 3) or i >= 24]
    assert list(table.verify(deep=True)) == []


@pytest.mark.parametrize("form", ["parquet", "iceberg"])
def test_rows_that_are_landed_meanwhile_stay(local_store, monkeypatch, form):
    feed = stream_feed(format={"type": form})
    table = filled(local_store, feed)
    late = stream_of(numbered([30]), request=ReadRequest())
    late = InMemoryBatches((SourceBatch(numbered([3]).rows, pa.array([0], pa.int32()), pa.array([40])),), "rowtime")
    in_between(monkeypatch, lambda: export(open_table(local_store, feed), late))
    assert table.delete_rows(DAY, "id IN (3, 4)").rows_deleted == 2
    assert ids(open_table(local_store, feed)) == [i for i in range(30) if i != 4]


def test_a_changed_file_is_named_and_nothing_is_deleted(local_store):
    table = filled(local_store, stream_feed())
    key = next(key for key in listed(local_store, "streams/s") if "day=01" in key)
    body = bytearray(local_store.get(key)[0])
    body[40] ^= 0xFF
    local_store.put(key, bytes(body))
    with pytest.raises(DatalakeError):
        table.delete_rows(DAY, "id IN (1, 2, 20)")
    assert table.report(DAY).rows == 24


def test_a_deletion_is_no_arrival_of_rows(local_store):
    table = filled(local_store, stream_feed())
    key = table.partitions()[0]
    before = table.snapshot([key]).health(key, FORCE).last_write
    table.delete_rows(key, "id = 1")
    assert table.snapshot([key]).health(key, FORCE).last_write == before


@pytest.mark.parametrize(
    "feed", [stream_feed(), stream_feed(format={"type": "iceberg"}), table_feed(format={"type": "iceberg"})]
)
def test_a_deletion_that_dies_at_any_change_is_whole_or_not_there(local_store, feed):
    """One lake, and another row each time: rows 2n and 2n + 1 go, which lie in two files of a stream."""
    table = open_table(local_store, feed)
    if feed.kind == "stream":
        export(table, stream_of(_on_first_day(range(0, 160, 2))))
        export(table, stream_of(_on_first_day(range(1, 160, 2))))
    else:
        export(table, table_of(160))
    (key,) = table.partitions()

    def left(number: int) -> list[int]:
        return list(range(2 * number, 160))

    def begun(number: int):
        return lambda: open_table(local_store, feed).delete_rows(key, f"id < {2 * number + 2}")

    def check(number: int) -> None:
        assert ids(open_table(local_store, feed)) in (left(number), left(number + 1))
        open_table(local_store, feed).repair()
        assert ids(open_table(local_store, feed)) in (left(number), left(number + 1))
        begun(number)()
        assert ids(open_table(local_store, feed)) == left(number + 1)

    steps = kill_points(begun, check, also=((transactions, "commit_updates"),))
    assert list(open_table(local_store, feed).verify(deep=True)) == []
    assert {"stage", "publish"} <= set(steps)


def _on_first_day(numbers: range) -> SourceBatch:
    rows = numbered(list(numbers))
    times = pa.array([datetime(2025, 1, 1, number % 24, tzinfo=UTC) for number in numbers], pa.timestamp("ms", "UTC"))
    return SourceBatch(
        rows.rows.set_column(2, "rowtime", times),
        pa.array([numbers.start] * len(numbers), pa.int32()),
        rows.source_offsets,
    )


def test_past_snapshots_hold_deleted_rows_until_they_are_dropped(local_store):
    feed = stream_feed(format={"type": "iceberg"})
    table = filled(local_store, feed)
    table.delete_rows(DAY, "id = 3")
    assert table.past_stays is not None
    assert 3 in folder_ids(local_store, "streams/s/data")
    gone = open_table(local_store, feed).expire(all_past=True)
    assert (gone.snapshots > 0, gone.kept) == (True, 0)
    assert folder_ids(local_store, "streams/s/data") == ids(table) == [i for i in range(30) if i != 3]
    assert open_table(local_store, stream_feed()).past_stays is None


def test_rows_in_quarantine_that_match_are_counted_and_deleted(local_store):
    feed = stream_feed()
    early = SourceBatch(
        pa.record_batch(
            [[7, 8], ["n7", "n8"], pa.array([datetime(2024, 12, 1, tzinfo=UTC), None], pa.timestamp("ms", "UTC"))],
            schema=numbered([1]).rows.schema,
        ),
        pa.array([0, 0], pa.int32()),
        pa.array([7, 8], pa.int64()),
        (RejectedRow(b"?", "not a row", "0:9"),),
    )
    table = open_table(local_store, feed)
    export(table, stream_of(numbered(range(7)), early))
    schema = table.snapshot([DAY]).dataset().schema
    found = waiting_rows(local_store, feed, "note IN ('n7', 'n3')", schema)
    assert (found.matching, found.undecided) == (1, 1)
    assert waiting_rows(local_store, feed, "month = 12", schema).matching == 1
    assert len(list(table.quarantined())) == 3
    waiting_rows(local_store, feed, "note IN ('n7', 'n3')", schema, delete=True)
    assert sorted(row.position for _, row in table.quarantined()) == ["0:8", "0:9"]
    assert (waiting_rows(local_store, feed, "id = 7", schema).matching, ids(table)) == (0, list(range(7)))


def test_rows_that_are_kept_as_they_came_are_judged_and_deleted_too(local_store):
    """They were landed without a value, and are whole beside the table."""
    feed = stream_feed(schema_policy="discard_value")
    table = open_table(local_store, feed)
    export(table, stream_of(numbered(range(5))))
    wider = numbered([5, 6])
    rows = wider.rows.append_column("secret", pa.array(["a", "b"]))
    export(table, stream_of(SourceBatch(rows, wider.source_partitions, wider.source_offsets)))
    schema = table.snapshot([DAY]).dataset().schema
    assert (len(list(table.discarded())), ids(table)) == (2, list(range(7)))
    assert waiting_rows(local_store, feed, "id = 5", schema, delete=True).matching == 1
    ((_, left),) = table.discarded()
    assert '"secret":"b"' in left.raw


@pytest.mark.parametrize("damaged", ['{"id":"x"}', '{"id":99999999999999999999}', '{"note":1}'])
def test_a_line_with_a_value_of_another_type_is_undecided_and_hides_no_other(local_store, damaged):
    feed = stream_feed()
    table = open_table(local_store, feed)
    export(table, stream_of(numbered(range(3))))
    lines = [(damaged, "0:8"), ('{"id":7,"note":"n7"}', "0:7")]
    rows = [QuarantinedRow(raw, "it was not placed", at, 0, decoded=True).to_line() for raw, at in lines]
    write_lines(local_store, f"{quarantine_folder(feed)}/_unknown", rows)
    schema = table.snapshot([DAY]).dataset().schema
    found = waiting_rows(local_store, feed, "id = 7", schema)
    assert (found.matching, found.undecided) == (1, 1)

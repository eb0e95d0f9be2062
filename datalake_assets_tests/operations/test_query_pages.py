"""Pages that are chosen for a query have all rows that it takes, and are few; DuckDB says what a query takes."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import closing, contextmanager
from decimal import Decimal
from functools import cache

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from datalake_assets.lake import sql_files, sql_scans
from datalake_assets.lake.sql_files import AskedFiles, serving
from datalake_assets.lake.sql_scans import stored_rows
from datalake_assets.lake.sql_views import NO_COLUMN, show

ROWS, GROUP = 12_000, 4000
WAYS = {
    "plain": {"use_dictionary": False, "compression": "zstd"},
    "dictionaries": {"use_dictionary": True, "compression": "snappy"},
    "version 2": {"use_dictionary": True, "compression": "gzip", "data_page_version": "2.0"},
    "deltas": {
        "use_dictionary": False,
        "compression": "none",
        "column_encoding": {"id": "DELTA_BINARY_PACKED", "text": "DELTA_BYTE_ARRAY"},
    },
}


def some_rows(seed: int) -> pa.Table:
    """Rows of all kinds of columns: sorted, repeating and drawn, with nulls, and what is no number."""
    drawn = np.random.default_rng(seed)
    ids = np.arange(ROWS) * 3
    is_null = drawn.random(ROWS) < 0.1
    is_null[GROUP : GROUP + GROUP // 2] = True  # pages of nulls alone
    floats = np.where(drawn.random(ROWS) < 0.01, np.nan, np.arange(ROWS) / 7)
    return pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "small": pa.array((np.arange(ROWS) // 500 - 30).astype(np.int8), mask=is_null),
            "unsigned": pa.array((np.arange(ROWS) * 140_000).astype(np.uint32)),
            "at": pa.array(ids * 1_000_000, pa.timestamp("us", "UTC"), mask=is_null),
            "second": pa.array(ids * 1000, pa.timestamp("ms")),
            "day": pa.array((np.arange(ROWS) // 100).astype(np.int32), pa.date32(), mask=is_null),
            "ratio": pa.array(floats, mask=drawn.random(ROWS) < 0.1),
            "text": pa.array([f"é{n // 9:06d}" for n in range(ROWS)], pa.large_string(), mask=is_null),
            "code": pa.array(drawn.integers(0, 50, ROWS).astype(str)),
            "is_new": pa.array(drawn.random(ROWS) < 0.5),
            "data": pa.array([b"\xff%d" % n for n in range(ROWS)], pa.binary()),
            "price": pa.array(np.arange(ROWS) - 6000, pa.int64()).cast(pa.decimal128(19, 0)),
        }
    )


QUERIES = [
    "id = 20001",
    "id = 20002",
    "id BETWEEN 1000 AND 1100 OR id > 35990",
    "id IN (3, 24444, 35997, -1)",
    "id = 15000 AND small IS NULL",
    "small = -30",
    "small IS NULL AND id < 300",
    "unsigned > 1679000000",
    "\"at\" = TIMESTAMPTZ '1970-01-01 00:00:30+00'",
    "second >= TIMESTAMP '1970-01-01 09:58:00'",
    "day = DATE '1970-02-01'",
    "ratio > 1710",
    "ratio = 'nan'::DOUBLE AND id < 5000",
    "text = 'é000123'",
    "text IS NOT NULL AND text < 'é000003'",
    "code = '7' AND id < 900",
    "is_new AND id = 600",
    "data = '\\xFF77'::BLOB",
    "price = -5999",
    "id < 60 AND ratio IS NULL",
    "id != id",
]


class Stored:
    """A file in a store that counts the bytes that are read of it."""

    def __init__(self, data: bytes) -> None:
        self.data, self.read, self._lock = data, 0, threading.Lock()

    def read_at(self, nbytes: int, offset: int) -> bytes:
        with self._lock:
            self.read += nbytes
        return self.data[offset : offset + nbytes]


def written(table: pa.Table, **how) -> bytes:
    sink = pa.BufferOutputStream()
    settings = {"row_group_size": GROUP, "write_page_index": True, "data_page_size": 4096, "write_batch_size": 500}
    pq.write_table(table, sink, **(settings | how))
    return sink.getvalue().to_pybytes()


@contextmanager
def shown(schema: pa.Schema, *stored: Stored):
    """A DuckDB that reads files as the process of a query does."""
    files, sizes = {f"{n}": each for n, each in enumerate(stored)}, [len(each.data) for each in stored]
    with serving(list(files), sizes, files.__getitem__) as theirs, duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        asked = AskedFiles(theirs)
        show(connection, "t", schema.empty_table(), as_schema=lambda given: stored_rows(asked, sizes, given, None))
        yield connection


@pytest.fixture
def eager(monkeypatch):
    """Pages are chosen however little it gains; gives a list of the row groups of which they were."""
    chosen, decoded = [], sql_scans.decoded

    def noted(leaves, group, *given):
        found = decoded(leaves, group, *given)
        chosen.append(group)
        return found

    monkeypatch.setattr(sql_scans, "_WORTH", 0)
    monkeypatch.setattr(sql_scans, "_CHOSEN_SHARE", 1)
    monkeypatch.setattr(sql_scans, "decoded", noted)
    return chosen


@pytest.fixture(params=[0, 1 << 30], ids=["looks first", "at once"])
def at_once(request, monkeypatch, eager):
    monkeypatch.setattr(sql_scans, "_AT_ONCE", request.param)
    if not request.param:
        monkeypatch.setattr(sql_scans, "_LOOK_SHARE", 1)


@cache
def two_files(way: str) -> list[bytes]:
    """Which each of the fixture's parameters reads."""
    return [written(some_rows(seed), **WAYS[way]) for seed in (1, 2)]


def answers(queries: list[str], columns: tuple[str, ...], order: str, rows: pa.Table) -> dict[tuple[str, str], str]:
    """What a DuckDB answers that has the rows for itself, whose filters it applies by itself."""
    with closing(duckdb.connect()) as wanted:
        wanted.execute("SET TimeZone = 'UTC'")
        wanted.register("given", rows)
        wanted.execute("CREATE TABLE t AS FROM given")
        asked = [(each, where) for where in queries for each in columns]
        return {key: repr(wanted.execute(query_of(*key, order)).fetchall()) for key in asked}


def query_of(columns: str, where: str, order: str) -> str:
    return f"SELECT {columns} FROM t WHERE {where} ORDER BY {order}"  # noqa: S608  our own


@pytest.fixture(scope="module")
def wanted():
    return answers(QUERIES, ("*", "count(*), max(ratio)"), "ALL", pa.concat_tables([some_rows(1), some_rows(2)]))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("way", WAYS)
def test_chosen_pages_have_all_rows_that_a_query_takes(way, eager, wanted):
    used = Counter()
    with shown(some_rows(1).schema, *map(Stored, two_files(way))) as connection:
        for (columns, where), answer in wanted.items():
            query = query_of(columns, where, "ALL")
            del eager[:]
            assert repr(connection.execute(query).fetchall()) == answer, query
            used[where] += bool(eager)
    # DuckDB filters by itself what it compares with another type, and what may be no number
    assert {where for where in QUERIES if not used[where]} <= {"id != id", *(each for each in QUERIES if ">" in each)}


def odd_rows() -> pa.Table:
    """Rows of columns whose bounds are easily taken for others, beside nested ones."""
    numbers = np.arange(ROWS)
    halves = np.where(numbers % 7 == 0, -0.0, np.where(numbers % 7 == 1, 0.0, numbers / 2 - 3000))
    halves[GROUP : GROUP + 100] = np.nan
    first = np.datetime64("1969-12-31T23:00:00")
    return pa.table(
        {
            "id": pa.array(numbers - ROWS // 2, pa.int16()),
            "large": pa.array((numbers.astype(np.uint64) << np.uint64(50)) + np.uint64(2**63 - 2**62)),
            "low": pa.array((numbers // 50).astype(np.uint8)),
            "falling": pa.array(-numbers, pa.int32()),
            "half": pa.array(halves),
            "single": pa.array(halves.astype(np.float32)),
            "zoned": pa.array(first + numbers, pa.timestamp("us", "America/New_York")),
            "nanos": pa.array(first.astype("datetime64[ns]") + numbers, pa.timestamp("ns")),
            "clock": pa.array(numbers.astype(np.int32)).view(pa.time32("s")),
            "cents": pa.array(numbers - 6000, pa.int64()).cast(pa.decimal128(21, 2)),
            "small_cents": pa.array([Decimal(n - 6000) for n in numbers.tolist()], pa.decimal128(9, 0)),
            "long": pa.array(["😀" * 30 + f"{n:05d}" for n in numbers]),
            "kind": pa.array([f"k{n // 1000}" for n in numbers]).dictionary_encode(),
            "flag": pa.array(numbers >= ROWS - 50),
            "listed": pa.array([[n, None] if n % 3 else None for n in numbers.tolist()], pa.list_(pa.int64())),
            "made": pa.array(
                [{"id": n, "x": None} for n in numbers.tolist()], pa.struct({"id": pa.int32(), "x": pa.int8()})
            ),
            "fixed": pa.array([n.to_bytes(4, "little") for n in numbers.tolist()], pa.binary(4)),
        }
    )


ODD_QUERIES = [
    "id = -6000",
    "id BETWEEN -5 AND 5 AND low = 119",
    "large = 4611686018427387904",
    "large >= 18122280473801785344",
    "low = 239 OR low = 0",
    "falling = -11999",
    "half = 0.0 AND id < -5900",
    "half = -0.0 AND id > 5900",
    "half < -2990",
    "half > 2990",
    "half != half AND id < -1000",
    "single = 'nan'::FLOAT OR id = 3",
    "zoned = TIMESTAMPTZ '1970-01-01 00:00:00+00'",
    "zoned < TIMESTAMPTZ '1969-12-31 18:00:05-05'",
    "nanos = TIMESTAMP_NS '1969-12-31 23:00:00.000000007'",
    "clock = TIME '00:00:09'",
    "cents = -6000",
    "small_cents = 5999",
    "long = repeat('😀', 30) || '00077'",
    "kind = 'k11' AND id = 5500",
    "flag AND id > 5995",
    "listed IS NULL AND id < -5990",
    "made.id = 77",
    "fixed = '\\x4D\\x00\\x00\\x00'::BLOB",
]


@pytest.fixture(scope="module")
def odd():
    """Rows, and what a DuckDB answers of them."""
    table = odd_rows()
    return table, answers(ODD_QUERIES, ("id", "* EXCLUDE (listed, made, kind)", "*"), "id", table)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("indexed", [True, ["id", "falling", "zoned"]], ids=["all bounds", "some bounds"])
def test_chosen_pages_have_all_rows_whatever_their_columns_are(indexed, eager, odd):
    table, wanted = odd
    stored = Stored(written(table, compression="snappy", write_statistics=indexed))
    used = set()
    with shown(table.schema, stored) as connection:
        for (columns, where), answer in wanted.items():
            query = query_of(columns, where, "id")
            del eager[:]
            assert repr(connection.execute(query).fetchall()) == answer, query
            used |= {where} if eager else set()
    assert {"id = -6000", "falling = -11999", "zoned = TIMESTAMPTZ '1970-01-01 00:00:00+00'"} <= used


def look_up(stored: Stored, schema: pa.Schema, where: str, columns: str = "*") -> tuple[list, int]:
    with shown(schema, stored) as connection:
        rows = connection.execute(f"SELECT {columns} FROM t WHERE {where}").fetchall()  # noqa: S608  our own
    return rows, stored.read


def test_a_look_up_reads_pages_and_not_row_groups(monkeypatch):
    table = some_rows(1)
    data = written(table, compression="none", use_dictionary=False, row_group_size=ROWS)
    monkeypatch.setattr(sql_scans, "_WORTH", len(data) // 2)
    ends = 64 << 10
    for columns in ("*", "* EXCLUDE (id), 20001 AS id"):  # of which DuckDB asks for all but the one that it filters by
        rows, read = look_up(Stored(data), table.schema, "id = 20001", columns)
        assert [20001 in row for row in rows] == [True]
        assert read - ends < len(data) / 5


@pytest.mark.usefixtures("eager")
def test_nothing_is_left_out_by_bounds_that_are_not_there():
    table = some_rows(1)
    for how in ({"write_page_index": False}, {"write_statistics": False}):
        rows, _ = look_up(Stored(written(table, **how)), table.schema, "id = 20001")
        assert [row[0] for row in rows] == [20001]


@pytest.mark.usefixtures("eager")
def test_rows_are_found_where_an_offset_index_lies():
    """The first row of each page of one column is stated one too high: pages, whose headers count, contradict that."""
    table = some_rows(1).select(["id", "code"])
    data = written(table, row_group_size=ROWS)
    metadata = pq.read_metadata(pa.BufferReader(data))
    assert metadata.row_group(0).column(0).has_offset_index
    from datalake_assets.parquet.footer import parse_footer  # noqa: PLC0415  the place alone

    footer = parse_footer(lambda at, length: data[at : at + length], len(data), where="")
    place, _ = footer.layouts[0].indexes[0]
    index = data[place.offset : place.offset + place.length]
    second = next(number for number in range(1, ROWS) if index.find(_first_row(number)) > 0)
    broken = index.replace(_first_row(second), _first_row(second + 1), 1)
    assert len(broken) == len(index)
    stored = Stored(data[: place.offset] + broken + data[place.offset + place.length :])
    for number in (0, second - 1, second, second + 1, ROWS - 1):
        rows, _ = look_up(stored, table.schema, f"id = {3 * number}")
        assert rows == [tuple(table.slice(number, 1).to_pylist()[0].values())]


def _first_row(number: int) -> bytes:
    """A page's first row as the compact protocol of Thrift has it: its field, the number, and the end of the page."""
    number, digits = number << 1, bytearray([0x16])
    while number > 127:
        digits.append(number & 127 | 128)
        number >>= 7
    return bytes([*digits, number, 0])


@pytest.mark.usefixtures("eager")
def test_a_footer_that_is_longer_than_what_is_read_of_the_end_is_left_to_arrow(monkeypatch):
    monkeypatch.setattr(sql_files, "_FOOTER", 100)
    table = some_rows(1)
    for where in ("id = 20001", "id + 1 = 20002"):
        rows, _ = look_up(Stored(written(table)), table.schema, where)
        assert [row[0] for row in rows] == [20001]


def test_columns_that_are_read_whole_are_asked_for_before_arrow_comes_to_them():
    table = some_rows(1)
    stored = Stored(written(table))
    sizes = [len(stored.data)]
    with serving(["a"], sizes, lambda _: stored) as theirs:
        asked = AskedFiles(theirs)
        held = asked._left
        schema = pa.schema([pa.field(NO_COLUMN, pa.null()), *table.schema])
        dataset = stored_rows(asked, sizes, schema, None)
        scanner = dataset.scanner(columns=["small", "code"])
        (file,) = dataset._files
        assert 1 <= len(file._ahead) <= 2 * (ROWS // GROUP)
        found = scanner.to_table()
        assert found.equals(table.select(["small", "code"]))
        assert not file._ahead
        assert asked._left == held  # what was read is no longer held


def test_a_file_that_cannot_be_read_is_told_as_ever():
    with serving(["a"], [1000], lambda _: (_ for _ in ()).throw(FileNotFoundError("gone"))) as theirs:
        asked = AskedFiles(theirs)
        dataset = stored_rows(asked, [1000], pa.schema([pa.field("none", pa.null()), pa.field("id", pa.int64())]), None)
        with pytest.raises(OSError, match="cannot be read"):
            dataset.scanner(columns=["id"], filter=ds.field("id") == 1).to_table()
        assert asked.is_gone

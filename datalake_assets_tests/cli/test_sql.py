"""`datalake sql`: every format, exactly, as rows are made; and nothing left behind by a reader that goes."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from decimal import Decimal

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.feed import parse_feed
from datalake_assets.lake.hive import HiveTable
from datalake_assets_tests.lake.feeds import numbered, stream_feed, stream_of

FORMATS = ("table", "csv", "json", "jsonl", "parquet", "arrow")
#: Takes minutes to answer in whole.
MANY = "select range as n, 'row ' || range as name from range(100_000_000)"


@pytest.fixture(autouse=True)
def _lake(lake_store, registry) -> None:
    stream = registry.add(stream_feed())
    HiveTable(lake_store, stream).write(stream_of(numbered(range(48))), partitions=("2025-01-01",), run_id="r")


def rows_of(output: str, answer: bytes) -> list[dict]:
    """The rows of an answer, by readers that are not ours; in CSV all is text."""
    if output == "csv":
        return list(csv.DictReader(io.StringIO(answer.decode(), newline="")))
    if output == "json":
        return json.loads(answer)
    if output == "jsonl":
        return [json.loads(line) for line in answer.splitlines()]
    if output == "parquet":
        return pq.read_table(io.BytesIO(answer)).to_pylist()
    return pa.ipc.open_stream(answer).read_all().to_pylist()


@pytest.mark.parametrize("output", FORMATS[1:])
@pytest.mark.parametrize("rows", [0, 1, 2048, 2049, 70_000])
def test_every_format_has_all_rows(run, output, rows):
    result = run("sql", "--format", output, f"select range as n, 'r' || range as t from range({rows})")  # noqa: S608
    assert result.exit_code == 0
    number = str if output == "csv" else int
    expected = [{"n": number(n), "t": f"r{n}"} for n in range(rows)]
    assert rows_of(output, result.stdout_bytes) == expected


@pytest.mark.parametrize("output", FORMATS[1:])
@pytest.mark.parametrize("limit", [1, 5, 2048, 3000])
def test_every_format_keeps_to_its_limit(run, output, limit):
    result = run("sql", "--format", output, "--limit", str(limit), "select range as n from range(1_000_000_000)")
    assert [int(row["n"]) for row in rows_of(output, result.stdout_bytes)] == list(range(limit))


def test_json_is_as_before(run):
    query = "select id, note as t, [id] as l from s where id < 2 order by id"
    expected = [{"id": 0, "t": "n0", "l": [0]}, {"id": 1, "t": "n1", "l": [1]}]
    assert run("sql", "--json", query).stdout == json.dumps(expected, indent=2) + "\n"
    assert run("sql", "--json", "select 1 where false").stdout == "[]\n"


@pytest.mark.parametrize("output", ["json", "jsonl", "parquet", "arrow"])
def test_columns_of_one_name_are_all_there(run, output):
    result = run("sql", "--format", output, "select 1 as a, 2 as a, 3 as a_1, 4 as a")
    assert rows_of(output, result.stdout_bytes) == [{"a": 1, "a_2": 2, "a_1": 3, "a_3": 4}]


def test_types_are_kept_in_parquet_and_arrow(run):
    query = (
        "select 1.5::decimal(38, 2) as d, sum(9223372036854775807) as h, now() as t, date '2025-01-01' as day,"
        " [1, null] as l, {'a': 1} as s, 'x'::blob as b, 'e'::enum('e', 'f') as e, null::int as n from range(2)"
    )
    for output in ("parquet", "arrow"):
        (row,) = rows_of(output, run("sql", "--format", output, query).stdout_bytes)
        assert (row["d"], row["h"], row["l"], row["s"]) == (
            Decimal("1.50"),
            2 * 9223372036854775807,
            [1, None],
            {"a": 1},
        )
        assert (row["b"], row["e"], row["n"], row["t"].tzinfo is not None) == (b"x", "e", None, True)


@pytest.mark.parametrize(
    ("output", "column", "kind"),
    [
        ("parquet", "interval 1 month", "INTERVAL"),
        ("parquet", "timetz '12:00:00+01'", "TIME WITH TIME ZONE"),
        ("arrow", "'101'::bit", "BIT"),
        ("arrow", "[timetz '12:00:00+01']", "TIME WITH TIME ZONE[]"),
        ("arrow", "union_value(k := 1)", "UNION(k INTEGER)"),
    ],
)
def test_a_column_that_the_format_cannot_keep_is_refused(run, output, column, kind):
    result = run("sql", "--format", output, f"select {column} as c")
    reason = f"column 'c' is {kind}, which {output} has no type for; cast it to VARCHAR"
    assert (result.exit_code, result.stdout_bytes, result.stderr) == (1, b"", f"Error: {reason}\n")
    assert run("sql", "--format", output, f"select ({column})::varchar as c").exit_code == 0


def test_a_long_table_is_several_and_says_so(run):
    result = run("sql", "--limit", "0", "select range as n from range(2500)")
    lines = result.stdout.splitlines()
    assert [index for index, line in enumerate(lines) if line.strip() == "n"] == [0, 1002, 2004]
    assert [int(line) for line in lines if line.strip().isdecimal()] == list(range(2500))
    assert result.stderr == "columns are aligned for 1,000 rows at a time; --format csv has one head\n"
    assert run("sql", "--limit", "0", "select range as n from range(1000)").stderr == ""


@pytest.mark.parametrize("output", FORMATS)
def test_an_answer_that_fails_late_does_not_look_whole(run, output, monkeypatch):
    monkeypatch.setattr("datalake_assets.cli.sql._GROUP_BYTES", 1 << 20)
    query = "select repeat('x', 1000) as x, if(range = 30_000, error('too late'), 1) as n from range(40_000)"
    result = run("sql", "--format", output, "--limit", "0", query)
    assert (result.exit_code, result.stderr.splitlines()[-1][:32]) == (1, "Error: the query cannot be run: ")
    assert result.stdout_bytes
    if output == "json":
        with pytest.raises(json.JSONDecodeError):
            json.loads(result.stdout_bytes)
    if output == "parquet":
        with pytest.raises(pa.ArrowInvalid):
            pq.read_table(io.BytesIO(result.stdout_bytes))


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@sum(a)", "\tx", "\rx", "\n=1", "'=1", "''-", "\uff1d1", "plain", "'", "1-1", ""]
)
def test_csv_text_is_no_formula_and_can_be_had_again(run, text):
    query = f"select '{text.replace(chr(39), chr(39) * 2)}' as c, -1 as n, -1.5::decimal(9, 1) as d, 'x' as last"
    (row,) = rows_of("csv", run("sql", "--format", "csv", query).stdout_bytes)
    assert (row["n"], row["d"], row["last"]) == ("-1", "-1.5", "x")
    assert row["c"][:1] not in {*"=+-@\t\r\n\uff1d"}
    bare = text.lstrip("'")
    assert row["c"] == (f"'{text}" if bare[:1] in {*"=+-@\t\r\n\uff1d"} and bare else text)
    (raw,) = rows_of("csv", run("sql", "--format", "csv", "--raw", query).stdout_bytes)
    assert raw["c"] == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("timestamp_ns '2020-01-01 00:00:00.123456789'", "2020-01-01 00:00:00.123456789"),
        ("time_ns '10:00:00.123456789'", "10:00:00.123456789"),
        ("interval '1 month 2 days'", "1 month 2 days"),
        ("time '24:00:00'", "24:00:00"),
        ("['2020-01-01 00:00:00.000000001'::timestamp_ns]", ["2020-01-01 00:00:00.000000001"]),
        ("{'INTERVAL': interval 1 year, 'a\"b': 1}", {"INTERVAL": "1 year", 'a"b': 1}),
        ("map {date '2020-01-01': interval 13 month}", {"2020-01-01": "1 year 1 month"}),
        ("'INTERVAL'::enum('INTERVAL')", "INTERVAL"),
        ("date '2020-01-01'", "2020-01-01"),
        ("timestamptz '2020-01-01 00:00:00.000001+00'", "2020-01-01T00:00:00.000001+00:00"),
    ],
)
def test_values_that_python_does_not_have_are_exact(run, value, text):
    result = run("sql", "--format", "json", f"select {value} as v, 1 as v, date '2020-01-01' as d -- ;")
    assert json.loads(result.stdout) == [{"v": text, "v_1": 1, "d": "2020-01-01"}]


@pytest.mark.parametrize(
    "value",
    [
        *("'infinity'::date", "'-infinity'::timestamp", "'infinity'::timestamptz"),
        *("[null, ['infinity'::date]]", "['infinity'::date]::date[1]", "map {1: 'infinity'::date}"),
        *("map {'infinity'::date: 1}", "{'a\"b''c': [{'d': 'infinity'::date, 'i': interval 1 month}]}"),
        "union_value(k := 'infinity'::date)",
    ],
)
def test_infinity_is_no_day_of_the_year_9999(run, value):
    result = run("sql", "--format", "csv", f"select 1 as n, {value} as d")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "column 'd' has infinity, which is no time here; cast it to VARCHAR" in result.stderr
    assert "infinity" in run("sql", "--format", "csv", f"select ({value})::varchar as d").stdout


def test_nested_times_that_are_finite_are_as_they_were(run):
    value = "{'d': [null, date '2020-01-01'], 'm': map {1: timestamp '2020-01-01 10:00:00'}, 'n': null::date[]}"
    result = run("sql", "--format", "json", f"select {value} as v, null::date[] as n")
    nested = {"d": [None, "2020-01-01"], "m": {"1": "2020-01-01T10:00:00"}, "n": None}
    assert json.loads(result.stdout) == [{"v": nested, "n": None}]


def test_order_of_a_query_with_times_is_kept(run):
    query = (
        "select range as n, timestamp_ns '2020-01-01' + to_microseconds(range) as t from range(9000) order by n desc"
    )
    rows = rows_of("csv", run("sql", "--format", "csv", query).stdout_bytes)
    assert [int(row["n"]) for row in rows] == list(range(8999, -1, -1))


def test_feed_that_cannot_be_read_hides_no_other(run, registry, tmp_path):
    gone = {"name": "a", "kind": "folder", "source": {"type": "folder", "uri": str(tmp_path / "unmounted/a")}}
    registry.add(parse_feed(json.dumps(gone)))
    result = run("sql", "--format", "csv", "show tables")
    assert (result.exit_code, result.stdout) == (0, "name\ns\n")
    assert "folders/a is left out: " in result.stderr
    assert run("sql", "select * from a").exit_code == 1


def test_files_that_do_not_fit_the_others_are_told_with_each_answer(run, tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for number, value in enumerate((1, 2, "x")):
        pq.write_table(pa.table({"v": [value]}), theirs / f"{number}.parquet")
    assert run("adopt", str(theirs), "--name", "theirs").exit_code == 0
    for query, told in (("select count(*) as n from theirs", True), ("select 2 as n from s limit 1", False)):
        result = run("sql", "--format", "csv", query)
        assert (result.exit_code, result.stdout) == (0, "n\n2\n")
        assert ("folders/theirs: a file of it left out, theirs/2.parquet: column 'v'" in result.stderr) is told


def test_a_csv_head_is_no_formula_either(run):
    assert run("sql", "--format", "csv", 'select 1 as "=cmd()"').stdout == "'=cmd()\n1\n"


def _started(*arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "datalake_assets.cli", "sql", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ)


@pytest.mark.parametrize("output", FORMATS)
def test_an_answer_ends_when_its_reader_does(output):
    with _started("--format", output, "--limit", "0", MANY) as process:
        assert process.stdout.read(64)
        peak = psutil.Process(process.pid).memory_info().rss
        process.stdout.close()
        process.wait(timeout=60)  # all of it would take minutes
        assert peak < 500e6
        assert process.stderr.read() == b""


def test_a_query_without_an_answer_yet_ends_when_its_reader_does():
    with _started("--format", "csv", "select count(*) from range(100_000_000) a, range(1_000_000) b") as process:
        time.sleep(1)  # it is at work by now; were it not, the test would be weaker, and no less true
        process.stdout.close()
        process.wait(timeout=60)
        assert process.stderr.read() == b""


def test_a_binary_answer_is_not_for_terminals():
    leader, follower = os.openpty()
    command = [sys.executable, "-m", "datalake_assets.cli", "sql", "--format", "parquet", "select 1"]
    result = subprocess.run(command, stdout=follower, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(follower)
    os.close(leader)
    assert result.returncode == 2
    assert b"--format parquet is not for terminals: send it to a file, with '> FILE'" in result.stderr

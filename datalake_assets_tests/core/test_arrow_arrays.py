"""Arrays and scalars are those that pyarrow makes, and pandas stays where it is."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nst

from datalake_assets.core.arrow_arrays import (
    constant,
    empty_array,
    empty_table,
    moment,
    moments,
    null_of,
    numbers_in,
    of_numbers,
    of_texts,
    truths_in,
)


@given(st.lists(st.none() | st.text(max_size=5), max_size=20))
def test_texts_are_those_of_pyarrow(texts):
    found = of_texts(texts)
    found.validate(full=True)
    assert found.equals(pa.array(texts, pa.string()))


DTYPES = st.sampled_from([np.bool_, np.int32, np.int64, np.uint8, np.uint16, np.float64, np.dtype(">i8")])


@given(st.data(), st.integers(1, 3), st.integers(0, 9))
def test_numbers_are_those_of_pyarrow_and_come_back(data, step, start):
    numbers = data.draw(DTYPES.flatmap(lambda dtype: nst.arrays(dtype, st.integers(0, 40))))[::step]
    found = of_numbers(numbers)
    found.validate(full=True)
    assert (found.type, found.null_count) == (pa.from_numpy_dtype(numbers.dtype.newbyteorder("=")), 0)
    np.testing.assert_array_equal(found.to_numpy(zero_copy_only=False), numbers)
    np.testing.assert_array_equal(numbers_in(found.slice(start)), numbers[start:])


@pytest.mark.parametrize("numbers", [np.zeros((2, 2)), np.array(["a"]), np.array([1], "M8[s]")])
def test_what_is_no_row_of_numbers_is_refused(numbers):
    with pytest.raises(TypeError):
        of_numbers(numbers)


def test_nulls_are_no_numbers():
    with pytest.raises(ValueError, match="1 nulls"):
        numbers_in(pa.array([1, None]))


@pytest.mark.parametrize("value", ["", "ü", b"", b"\xff", True, False, 0, -(2**63), 1.5])
def test_constants_are_those_of_pyarrow(value):
    assert constant(value).equals(pa.scalar(value))


MICROSECONDS = st.datetimes(datetime(1678, 1, 1), datetime(2262, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  hypothesis wants it


@given(st.lists(MICROSECONDS, max_size=5), st.sampled_from(["us", "ns"]), st.sampled_from([None, "UTC", "Asia/Tokyo"]))
def test_times_are_those_of_pyarrow(values, unit, zone):
    kind = pa.timestamp(unit, zone)
    assert moments(values, kind).equals(pa.array(values, kind))


@pytest.mark.parametrize(("unit", "count"), [("s", -1), ("ms", -1), ("us", -1), ("ns", -1000)])
def test_times_are_rounded_down(unit, count):
    assert moment(datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC), pa.timestamp(unit)).value == count


def test_a_time_that_a_type_does_not_hold_is_refused():
    with pytest.raises(OverflowError):
        moment(datetime(1, 1, 1, tzinfo=UTC), pa.timestamp("ns", "UTC"))


@pytest.mark.parametrize("kind", [pa.string(), pa.timestamp("us", "UTC"), pa.list_(pa.int64())])
def test_nulls_and_arrays_without_values_are_those_of_pyarrow(kind):
    assert null_of(kind).equals(pa.scalar(None, kind))
    assert empty_array(kind).equals(pa.array([], kind))


@given(st.lists(st.none() | st.booleans(), max_size=20), st.booleans())
def test_truths_are_those_of_an_array_and_one_for_nulls(truths, null):
    expected = [null if each is None else each for each in truths]
    assert truths_in(pa.array(truths, pa.bool_()), null=null).tolist() == expected


def test_a_table_without_rows_has_its_columns():
    schema = pa.schema([pa.field("a", pa.int64(), metadata={"k": "v"}), pa.field("b", pa.list_(pa.string()))])
    assert empty_table(schema).equals(schema.empty_table(), check_metadata=True)


def test_a_conversion_loads_no_pandas(tmp_path):
    """Neither with types that are inferred, of many forms and with bad rows, nor to either format."""
    rows = [f'{number},{number / 8},{number / 7e9!r},"t,{number}",2025-01-01T10:00:00Z,true,' for number in range(999)]
    (tmp_path / "a.csv").write_text("\n".join(["n,d,x,t,at,b,nothing", *rows, "1,2", "x,1,1,t,,false,"]) + "\n")
    code = (
        "import sys; from datalake_assets.cli.app import app;"
        f"app(['convert', {str(tmp_path / 'a.csv')!r}, {str(tmp_path / 'out')!r}, '--to', 'parquet,avro'],"
        " standalone_mode=False); print('pandas' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert (tmp_path / "out/a.avro").exists()


def test_an_export_of_dropped_files_loads_no_pandas(tmp_path):
    """Neither the first one, nor one that reads what the first remembered and puts a record aside."""
    drop = tmp_path / "drop"
    drop.mkdir()
    (tmp_path / "lake").mkdir()
    rows = "".join(f"{number},t{number},2025-01-{number % 9 + 1:02}T10:00:00Z\n" for number in range(99))
    (drop / "a.csv").write_text(f"n,t,at\n{rows}")
    (drop / "b.csv").write_text(f"n,t,at\n{rows}1,2\n")
    source = {"type": "files", "location": str(drop), "min_age_s": 0, "pattern": "a*"}
    feed = {"name": "s", "kind": "stream", "time_column": "at", "source": source}
    code = f"""
import json, sys
from datalake_assets.feed import parse_feed
from datalake_assets.lake.store import open_store
from datalake_assets.lake.tables import open_table
from datalake_assets.settings import load_settings
from datalake_assets.sources.systems import connect
for pattern in ("a*", "*"):
    feed = {feed!r}
    feed["source"]["pattern"] = pattern
    table = open_table(open_store({str(tmp_path / "lake")!r}), parse_feed(json.dumps(feed)))
    plan = table.plan()
    with connect("files", load_settings()) as files:
        said = table.write(files.read(table.feed, plan.request), partitions=plan.partitions, run_id="r")
    print(json.dumps([said.rows_added, said.rows_quarantined]))
print(json.dumps([each for each in ("pandas", "pyarrow.dataset") if each in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert list(map(json.loads, done.stdout.splitlines())) == [[99, 0], [99, 1], []]

"""Arrays and scalars are those that pyarrow makes, and pandas stays where it is."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nst

from datalake_assets.core.arrow_arrays import constant, empty_table, numbers_in, of_numbers, of_texts


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

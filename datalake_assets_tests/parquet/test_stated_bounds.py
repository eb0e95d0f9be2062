"""Bounds that are no values of their columns: Arrow is not asked for them, and no copy carries them on.

Where this fails, Arrow ends the process.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
import pytest

from datalake_assets.errors import UnreadableFile
from datalake_assets.lake.scan import BoundedDataset
from datalake_assets.parquet import stated_bounds
from datalake_assets.parquet.adopted_footer import read_adopted_footer
from datalake_assets.parquet.decoding import open_parquet
from datalake_assets.parquet.native import Part, Refused
from datalake_assets.parquet.pages import UnsoundPages, walk_pages
from datalake_assets.parquet.stated_bounds import has_cut_bounds
from datalake_assets_tests.parquet.parquet_files import concatenated, footer, parquet, reader

#: Of each kind: its type, two values, and how they are stated.
KINDS = {
    "long": (pa.int64(), [1, 3], struct.Struct("<q").pack),
    "time": (pa.timestamp("us"), [1, 3], struct.Struct("<q").pack),
    "int": (pa.int32(), [1, 3], struct.Struct("<i").pack),
    "double": (pa.float64(), [1.0, 3.0], struct.Struct("<d").pack),
    "flag": (pa.bool_(), [False, True], lambda value: bytes([value])),
    "fixed": (pa.binary(4), [b"abcd", b"efgh"], bytes),
}


def stating(kind: str, width: int) -> bytes:
    """A file whose bounds take so many bytes."""
    of_type, values, packed = KINDS[kind]
    body = parquet(pa.table({"x": pa.array(values, of_type)}), use_dictionary=False, store_schema=False)
    begin = len(body) - 8 - int.from_bytes(body[-8:-4], "little")
    changed = body[begin:-8]
    for value in map(packed, values):
        stated = bytes([len(value)]) + value
        assert stated in changed
        changed = changed.replace(stated, bytes([width]) + (value * 8)[:width])
    return body[:begin] + changed + len(changed).to_bytes(4, "little") + b"PAR1"


def of_another_type() -> bytes:
    """A file whose column chunk states another physical type than the schema."""
    body = parquet(pa.table({"x": pa.array([1, 3], pa.int64())}), use_dictionary=False, store_schema=False)
    begin = len(body) - 8 - int.from_bytes(body[-8:-4], "little")
    chunk = bytes([0x1C, 0x15, 2 * 2, 0x19])  # ColumnMetaData, its type INT64, and the list of encodings
    assert body[begin:].count(chunk) == 1
    return body[:begin] + body[begin:].replace(chunk, bytes([0x1C, 0x15, 2 * 5, 0x19]))


@pytest.fixture(params=["by the kernel", "in Python"])
def _either(request, monkeypatch):
    """Whoever looks at bounds."""
    if request.param == "in Python":
        monkeypatch.setattr(stated_bounds, "load_kernel", lambda: None)
        monkeypatch.setattr(stated_bounds, "FIRST_READ_BYTES", 16)  # no footer is as short
    elif stated_bounds.load_kernel() is None:
        pytest.skip("there is no kernel")


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "fixed"])
@pytest.mark.parametrize("source", [pa.BufferReader, lambda body: pa.PythonFile(io.BytesIO(body), mode="r")])
def test_bound_shorter_than_a_value_is_refused_before_arrow_is_asked_for_it(kind, source):
    width = len(KINDS[kind][2](KINDS[kind][1][0]))
    for short in {0, width - 1}:
        with pytest.raises(OSError, match=f"a bound of column 'x' takes {short} bytes, and its values {width}"):
            open_parquet(source(stating(kind, short)))
    assert open_parquet(source(stating(kind, width))).metadata.row_group(0).column(0).statistics.has_min_max


@pytest.mark.usefixtures("_either")
def test_chunk_of_another_type_than_its_column_is_refused():
    with pytest.raises(OSError, match="a chunk of column 'x' is DOUBLE, and INT64 by the schema"):
        open_parquet(pa.BufferReader(of_another_type()))


LISTS = {
    "encodings": (b"\x19\x35\x00\x06\x10", b"\x19\x36\x00\x06\x10"),  # of 32 bits, of 64
    "path": (b"\x19\x18\x01x", b"\x19\x13\x01x"),  # of texts, of bytes
    "encoding statistics": (b"\x19\x2c\x15", b"\x19\x23\x15"),  # of structs, of bytes
    "sizes": (b"\x19\x26\x02\x04", b"\x19\x25\x02\x04"),  # of 64 bits, of 32
}


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("name", LISTS)
def test_list_of_other_elements_than_the_format_has_there_is_refused(name):
    """Arrow takes its elements for what they should be, and reads all that follows otherwise than who skips them."""
    body = parquet(pa.table({"x": pa.array([1, None, 3], pa.int64())}), store_schema=False)
    begin, (right, wrong) = len(body) - 8 - int.from_bytes(body[-8:-4], "little"), LISTS[name]
    assert body[begin:].count(right) == 1, body[begin:]
    with pytest.raises(OSError, match="damaged"):
        open_parquet(pa.BufferReader(body[:begin] + body[begin:].replace(right, wrong)))


@pytest.mark.usefixtures("_either")
def test_bound_that_only_arrow_sees_is_refused_before_arrow_is_asked_for_it():
    """Found by fuzzing: behind a list of another kind lies a bound of three bytes, for Arrow alone."""
    body = Path(__file__).parent.joinpath("data", "damaged-list.parquet").read_bytes()
    with pytest.raises(OSError, match="its footer is damaged"):
        open_parquet(pa.BufferReader(body))
    with pytest.raises(UnreadableFile, match="damaged"):
        read_adopted_footer(body, len(body), time_column=None, where="x.parquet")


@pytest.mark.parametrize("column", ["x", None])
@pytest.mark.parametrize("body", [stating("time", 3), of_another_type()], ids=["bound", "type"])
def test_first_look_at_a_file_of_others_refuses_it(body, column):
    with pytest.raises(UnreadableFile, match=r"its footer is damaged: .*column 'x'"):
        read_adopted_footer(body, len(body), time_column=column, where="x.parquet")


@pytest.mark.usefixtures("_either")
def test_filter_is_not_held_against_bounds_that_are_cut_off(tmp_path):
    (tmp_path / "cut.parquet").write_bytes(stating("fixed", 2))
    (tmp_path / "whole.parquet").write_bytes(stating("fixed", 4))
    files = ds.dataset(tmp_path, format="parquet", filesystem=pafs.LocalFileSystem())
    bounded = BoundedDataset(list(files.get_fragments()), files.schema, files.format, files.filesystem)
    found = bounded.scanner(filter=ds.field("x") == pa.scalar(b"efgh", pa.binary(4))).to_table()
    assert found["x"].to_pylist() == [b"efgh", b"efgh"]
    assert [has_cut_bounds(pa.OSFile(str(Path(tmp_path, name)))) for name in ("cut.parquet", "whole.parquet")] == [
        True,
        False,
    ]


@pytest.mark.parametrize(("kind", "width"), [("fixed", 2), ("fixed", 6), ("long", 12), ("long", 4)])
def test_no_copy_carries_odd_bounds_on(kind, width):
    body = stating(kind, width)
    with pytest.raises(UnsoundPages, match="a bound of column 'x'"):
        concatenated(body)
    with pytest.raises(UnsoundPages, match="a bound of column 'x'"):
        walk_pages(footer(body), reader(body))
    if (kernel := stated_bounds.load_kernel()) is not None:
        (refused,) = kernel.walk([Part(body)])
        assert isinstance(refused, Refused)
        assert "bounds of a column" in refused.why

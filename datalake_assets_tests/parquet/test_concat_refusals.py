"""What cannot be concatenated is refused, and damage or a failed write never ends in a file."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.errors import UnreadableFile
from datalake_assets.parquet.concat import MAX_ROW_GROUPS, ConcatWriter
from datalake_assets.parquet.pages import UnsoundPages
from datalake_assets_tests.parquet.parquet_files import (
    concatenated,
    encryption_of,
    footer,
    numbers,
    parquet,
    read,
    reader,
    rows,
)
from datalake_assets_tests.parquet.sinks import MemorySink


def test_another_schema_is_refused():
    with pytest.raises(ValueError, match=r"lake/input\.parquet has another schema"):
        concatenated(parquet(numbers(0, 5)), parquet(rows(0, 5)))


@pytest.mark.parametrize("row_groups", [[1], [-1], [0, 0]])
def test_row_groups_that_are_not_there_are_refused(row_groups):
    with pytest.raises(ValueError, match="has 1 row groups"):
        concatenated(parquet(numbers(0, 5)), row_groups=row_groups)


def test_a_file_that_is_closed_or_abandoned_takes_no_more():
    body = parquet(numbers(0, 5))
    for end in (ConcatWriter.close, ConcatWriter.abandon):
        sink = MemorySink()
        writer = ConcatWriter(sink, footer(body))
        end(writer)
        size = sink.tell()
        writer.abandon()
        for use in (writer.close, lambda writer=writer: writer.append(footer(body), reader(body))):
            with pytest.raises(ValueError, match="closed"):
                use()
        assert sink.tell() == size


def test_more_row_groups_than_can_be_numbered_are_refused(monkeypatch):
    monkeypatch.setattr("datalake_assets.parquet.concat.MAX_ROW_GROUPS", 5)
    body = parquet(numbers(0, 6), row_group_size=2)

    with pytest.raises(ValueError, match="at most 5 row groups"):
        concatenated(body, body)


def test_arrow_too_numbers_so_many_row_groups_and_no_more():
    """It numbers those of encrypted files alone, and refuses the second after the last: the first number is 0."""
    table = pa.table({"n": range(MAX_ROW_GROUPS + 2)})
    properties = encryption_of("n", plaintext_footer=True)
    with pytest.raises(OSError, match=f"more than {MAX_ROW_GROUPS} row groups"):
        pq.write_table(table, io.BytesIO(), row_group_size=1, encryption_properties=properties)


def test_a_damaged_file_leaves_the_writer_as_it_was():
    good, bad = (
        parquet(numbers(0, 10), write_page_index=True),
        bytearray(parquet(numbers(10, 20), write_page_index=True)),
    )
    index = footer(bytes(bad)).layouts[0].indexes[0][0]
    bad[index.offset : index.offset + index.length] = b"\xff" * index.length
    sink = MemorySink()
    writer = ConcatWriter(sink, footer(good))
    writer.append(footer(good), reader(good))
    with pytest.raises(UnsoundPages, match=r"lake/input\.parquet: there is no kind 15"):
        writer.append(footer(bytes(bad)), reader(bytes(bad)))
    with pytest.raises(UnreadableFile, match="it ends before"):
        writer.append(footer(good), reader(good[:100]))
    writer.append(footer(good), reader(good))
    done = writer.close()

    assert done.file.rows == 20
    assert read(sink.finish())["n"].to_pylist() == [*range(10), *range(10)]


def test_a_sink_that_failed_is_not_written_to_again():
    """Nobody knows how much of a block it has taken: offsets would be wrong from there on."""
    body = parquet(numbers(0, 10))
    sink = MemorySink(fail_after=4)
    writer = ConcatWriter(sink, footer(body))
    with pytest.raises(OSError, match="disk full"):
        writer.append(footer(body), reader(body))
    for use in (writer.close, lambda: writer.append(footer(body), reader(body))):
        with pytest.raises(ValueError, match="closed"):
            use()

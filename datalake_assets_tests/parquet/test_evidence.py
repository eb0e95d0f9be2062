"""A mistake of whoever puts a footer together is found by a reader that had no part in it."""

from __future__ import annotations

import pyarrow as pa
import pytest

from datalake_assets.errors import CorruptLake
from datalake_assets.parquet import concat
from datalake_assets.parquet.outputs import Evidence
from datalake_assets_tests.parquet.parquet_files import EXTRAS, concatenated, edited, footer, meta, parquet, rows
from datalake_assets_tests.parquet.test_rewrite import CONCAT, REENCODE, input_file, rewritten

BODIES = [
    parquet(rows(start, start + 120), **EXTRAS, compression=codec) for start, codec in ((0, "zstd"), (120, "none"))
]
FILES = [input_file(name, body) for name, body in zip("ab", BODIES, strict=True)]


def evidence(body, cut=1000):
    told = Evidence(meta(body), range(meta(body).num_row_groups))
    for offset in range(0, len(body), cut):
        told.feed(offset, body[offset : offset + cut])
    return told.digests()


@pytest.mark.parametrize("cut", [1, 7, 1000, 1 << 20])
def test_row_groups_are_the_same_wherever_they_lie_and_however_bytes_are_cut(cut):
    moved = concatenated(*BODIES)[1]
    assert evidence(moved, cut) == [*evidence(BODIES[0]), *evidence(BODIES[1])]
    assert len(evidence(moved)) == 6


def test_any_changed_byte_of_a_chunk_is_seen():
    whole, told = evidence(BODIES[1]), footer(BODIES[1])
    for group in told.row_groups:
        for at in range(group.start, group.end, 97):
            wrong = bytearray(BODIES[1])
            wrong[at] ^= 4
            assert evidence(bytes(wrong)) != whole


def astray(moves, offset):
    found = RIGHT(moves, offset)
    return found + 1 if found > 1000 else found


RIGHT = concat._Moves.of


@pytest.mark.parametrize("chosen", [CONCAT, REENCODE], ids=["concat", "reencode"])
def test_offset_that_was_moved_wrongly_is_found_before_the_commit(chosen, monkeypatch):
    monkeypatch.setattr(concat._Moves, "of", astray)
    with pytest.raises(CorruptLake, match="does not read back as it was"):
        rewritten(FILES, chosen)


def test_pages_in_another_place_than_the_footer_says_are_found(monkeypatch):
    written = concat.ConcatWriter._write

    def late(self, data, **seen):
        written(self, data if self._size_bytes != 4 else b"\0" + bytes(data), **seen)

    monkeypatch.setattr(concat.ConcatWriter, "_write", late)
    with pytest.raises(CorruptLake, match="does not read back as it was"):
        rewritten(FILES, CONCAT)


@pytest.mark.parametrize("chosen", [CONCAT, REENCODE], ids=["concat", "reencode"])
def test_metadata_over_which_pyarrow_ends_the_process_leaves_its_file_alone(chosen):
    """Histograms of levels that are not as long as the column has levels."""
    body = parquet(pa.table({"n": range(100)}))
    histogram = b"\x29\x26\x02\x02\x00"  # SizeStatistics: field 2, a list of two numbers
    wrong = edited(body, column=lambda fields: fields | {16: (12, histogram)})
    good = [input_file(name, body) for name in ("first", "last")]

    result = rewritten([good[0], input_file("bad", wrong, rows=100), good[1]], chosen)

    assert list(result.rejected) == ["bad"]
    assert "histogram" in result.rejected["bad"]
    assert result.rewritten == ("first", "last")


def test_names_that_are_no_texts_leave_their_file_alone():
    body = parquet(pa.table({"number": range(100)}))
    wrong = body.replace(b"number", b"num\x87er")
    good = [input_file(name, body) for name in ("first", "last")]

    result = rewritten([good[0], input_file("bad", wrong, rows=100), good[1]], REENCODE)

    assert list(result.rejected) == ["bad"]


@pytest.mark.parametrize("chosen", [CONCAT, REENCODE], ids=["concat", "reencode"])
def test_category_that_the_dictionary_lacks_leaves_its_file_alone(chosen):
    """Arrow gives such numbers on; only who looks at the values falls."""
    kinds = pa.array(["k0", "k1", "k2"] * 40).dictionary_encode()
    body = parquet(pa.table({"kind": kinds, "nested": pa.array([[0]] * 120)}), compression="none")
    start = footer(body).layouts[0].chunks[0].dictionary_offset
    wrong = bytearray(body)
    place = body.index(b"\x4c\x15\x06", start) + 2  # DictionaryPageHeader: its number of values, 3
    wrong[place] = 4
    good = [input_file(name, body) for name in ("first", "last")]

    result = rewritten([good[0], input_file("bad", bytes(wrong)), good[1]], chosen)

    assert list(result.rejected) == ["bad"]
    assert "out of bounds" in result.rejected["bad"]

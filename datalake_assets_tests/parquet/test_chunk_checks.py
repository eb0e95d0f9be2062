"""Damage over which Arrow ends the process is found in any chunk, without reading a byte of the file."""

from __future__ import annotations

import io
from itertools import count

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.parquet import chunk_checks
from datalake_assets.parquet.chunk_checks import check_chunks
from datalake_assets_tests.parquet.parquet_files import edited, parquet

COLUMNS, GROUPS = 3, 2
BODY = parquet(
    pa.table({"n": range(100), "text": [str(n) for n in range(100)], "f": [n / 7 for n in range(100)]}),
    row_group_size=50,
)
#: SizeStatistics whose field 2 is a list of two numbers, and the columns have one level.
HISTOGRAM = (12, b"\x29\x26\x02\x02\x00")


def check(body: bytes) -> None:
    check_chunks(pq.read_metadata(io.BytesIO(body)), len(body))


class Asked(Exception):
    """Arrow was asked for a second time."""


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    def tail(*_: object) -> None:
        raise Asked

    monkeypatch.setattr(chunk_checks, "Tail", tail)


@pytest.mark.usefixtures("once")
def test_sound_metadata_are_found_so_without_a_read() -> None:
    check(BODY)


@pytest.mark.usefixtures("once")
def test_sound_metadata_are_found_so_wherever_the_first_page_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_checks, "_BAD_PAGE", bytes(7))
    check(BODY)


@pytest.mark.usefixtures("once")
def test_file_without_rows_is_sound() -> None:
    check(parquet(pa.table({"n": pa.array([], pa.int64())})))


@pytest.mark.parametrize("wrong", range(COLUMNS * GROUPS))
def test_damage_is_found_in_any_chunk(wrong: int) -> None:
    numbers = count()

    def damaged(fields: dict[int, tuple[int, bytes]]) -> dict[int, tuple[int, bytes]]:
        return fields | {16: HISTOGRAM} if next(numbers) == wrong else fields

    body = edited(BODY, column=damaged)
    assert next(numbers) == COLUMNS * GROUPS
    with pytest.raises(OSError, match="histogram"):
        check(body)


def test_codec_that_arrow_does_not_have_is_no_damage() -> None:
    check(edited(BODY, column=lambda fields: fields | {4: (5, b"\x06")}))  # LZO


@pytest.mark.parametrize("damage", [None, HISTOGRAM])
def test_where_no_memory_can_be_had_arrow_is_asked_of_no_bytes(
    monkeypatch: pytest.MonkeyPatch, damage: tuple[int, bytes] | None
) -> None:
    def none(_: int) -> pa.Buffer:
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(chunk_checks, "_without_pages", none)
    if damage is None:
        check(BODY)
        return
    with pytest.raises(OSError, match="histogram"):
        check(edited(BODY, column=lambda fields: fields | {16: damage}))

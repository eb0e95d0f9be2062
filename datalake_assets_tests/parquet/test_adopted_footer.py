"""What a file of another writer says of itself, and that no damage to it does more than one clear error."""

from __future__ import annotations

import datetime as dt
import io
import os
import random
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalake_assets.errors import UnreadableFile
from datalake_assets.parquet.adopted_footer import bytes_needed, is_parquet, is_time, read_adopted_footer
from datalake_assets.parquet.thrift import zigzag
from datalake_assets_tests.parquet.parquet_files import edited, encryption_of

UTC = dt.UTC
TIMES = [dt.datetime(2025, 1, 3), None, dt.datetime(2025, 1, 1, 1, 2, 3), dt.datetime(2025, 1, 2)]  # noqa: DTZ001


def parquet(table: pa.Table, **options: object) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def read(body: bytes, time_column: str | None = None):
    return read_adopted_footer(body, len(body), time_column=time_column, where="x.parquet")


def test_footer_is_read_from_the_last_bytes_alone():
    body = parquet(pa.table({"id": pa.array(range(10_000)), "note": [f"n{i}" for i in range(10_000)]}))
    needed = bytes_needed(body[-8:], len(body), where="x")
    assert needed < len(body) / 10
    footer = read_adopted_footer(body[-needed:], len(body), time_column=None, where="x")
    assert (footer.file.rows, footer.schema) == (10_000, pa.schema([("id", pa.int64()), ("note", pa.string())]))


@pytest.mark.parametrize("zone", [None, "UTC", "Europe/Berlin"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_come_from_the_statistics_of_all_row_groups(unit, zone):
    times = pa.array(TIMES).cast(pa.timestamp(unit, zone))
    footer = read(parquet(pa.table({"id": range(4), "at": times}), row_group_size=1), "at")
    assert footer.file.min_time == dt.datetime(2025, 1, 1, 1, 2, 3, tzinfo=UTC)
    assert footer.file.max_time == dt.datetime(2025, 1, 3, tzinfo=UTC)
    assert type(footer.file.min_time) is dt.datetime


def test_days_begin_at_midnight():
    footer = read(parquet(pa.table({"day": [dt.date(2025, 1, 2), dt.date(2025, 1, 1)]})), "day")
    assert (footer.file.min_time, footer.file.max_time) == (
        dt.datetime(2025, 1, 1, tzinfo=UTC),
        dt.datetime(2025, 1, 2, tzinfo=UTC),
    )


@pytest.mark.parametrize(
    ("table", "options"),
    [
        (pa.table({"at": TIMES}), {"write_statistics": False}),
        (pa.table({"at": pa.nulls(3, pa.timestamp("us"))}), {}),
        (pa.table({"at": pa.array([], pa.timestamp("us"))}), {}),
        (pa.table({"at": [1, 2]}), {}),
        (pa.table({"other": TIMES}), {}),
        (pa.table({"at": TIMES}), {"use_deprecated_int96_timestamps": True}),
    ],
    ids=["no statistics", "all null", "no rows", "no times", "no such column", "int96"],
)
def test_times_are_unknown_when_statistics_do_not_say(table, options):
    footer = read(parquet(table, **options), "at")
    assert (footer.file.min_time, footer.file.max_time) == (None, None)
    assert footer.file.rows == table.num_rows


def test_int96_is_read_in_microseconds_which_do_not_overflow():
    body = parquet(pa.table({"at": pa.array(TIMES).cast(pa.timestamp("ns"))}), use_deprecated_int96_timestamps=True)
    assert read(body).schema.field("at").type == pa.timestamp("us")


def test_is_time():
    kinds = [pa.timestamp("s"), pa.timestamp("ns", "UTC"), pa.date32(), pa.date64(), pa.int64(), pa.string()]
    assert [is_time(kind) for kind in kinds] == [True, True, True, True, False, False]


GOOD = parquet(pa.table({"id": range(100), "at": [TIMES[0]] * 100, "s": ["x"] * 100}), row_group_size=40)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "it has no bytes"),
        (b"PAR1", "it is not a Parquet file, or was truncated"),
        (b"id,name\n1,x\n" * 20, "it is not a Parquet file, or was truncated"),
        (GOOD[:-3], "it is not a Parquet file, or was truncated"),
        (GOOD[: len(GOOD) // 2], "it is not a Parquet file, or was truncated"),
        (b"PAR1" + GOOD[-12:], "it is not a Parquet file, or was truncated"),
        (GOOD[:-4] + b"PARE", "it is encrypted"),
        (GOOD[:-100] + b"\xff" * 92 + GOOD[-8:], "its footer is damaged"),
    ],
    ids=["empty", "magic", "text", "cut", "half", "tail", "encrypted", "scribbled"],
)
def test_file_that_cannot_be_read_is_told_in_words(body, reason):
    with pytest.raises(UnreadableFile, match=reason):
        read(body, "at")


def test_is_parquet_goes_by_the_magic():
    assert [is_parquet(body) for body in (GOOD, b"...PARE", b"text", b"")] == [True, True, False, False]


@pytest.mark.parametrize("plaintext_footer", [True, False])
def test_encrypted_columns_are_told_and_do_not_abort_the_process(plaintext_footer):
    table = pa.table({"id": [1, 2], "at": TIMES[2:]})
    properties = encryption_of("at", plaintext_footer=plaintext_footer)
    file = io.BytesIO()
    with pq.ParquetWriter(file, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    with pytest.raises(UnreadableFile, match="it is encrypted"):
        read(file.getvalue(), "at")


def damaged(count: int) -> Iterator[bytes]:
    """The good file with some bytes of its footer changed."""
    length = int.from_bytes(GOOD[-8:-4], "little")
    for seed in range(count):
        rng, body = random.Random(seed), bytearray(GOOD)
        for _ in range(rng.randrange(1, 4)):
            body[len(body) - 8 - rng.randrange(1, length + 1)] = rng.randrange(256)
        yield bytes(body)


def test_no_damage_to_a_footer_aborts_the_process():
    """Arrow's C++ throws past Python for some; a child process would die of it."""
    child = os.fork()
    if not child:
        code = 0
        for body in damaged(3000):
            try:
                read(body, "at")
            except UnreadableFile:
                continue
            except BaseException:  # noqa: BLE001  told by the exit code
                code = 1
        os._exit(code)
    _, status = os.waitpid(child, 0)
    assert (os.WIFSIGNALED(status), os.waitstatus_to_exitcode(status)) == (False, 0)


@pytest.mark.parametrize("rows", [0, 5, 7])
def test_footer_that_lies_about_rows_is_named(rows):
    body = edited(parquet(pa.table({"n": range(6)})), file=lambda fields: fields | {3: (6, zigzag(rows))})
    with pytest.raises(UnreadableFile, match=f"its footer says {rows} rows, and its row groups have 6"):
        read_adopted_footer(body, len(body), time_column=None, where="a.parquet")

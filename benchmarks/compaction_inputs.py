"""The rows that compaction is measured on: three integers, two floats, a time, four texts and a boolean, as in events.

Two of the texts have few values and two a new one in every row; rows are in order of time. The files are what pyarrow
writes unasked, one row group each, with Snappy: nothing in them favours anybody's way of rewriting.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

__all__ = ["DAY", "SCHEMA", "InputFile", "Template", "make_file"]

DAY = datetime(2025, 1, 15, tzinfo=UTC)
DAY_US = 86_400_000_000

COUNTRIES = ("AT", "BE", "CH", "CZ", "DE", "DK", "ES", "FR", "GB", "IE", "IT", "NL", "NO", "PL", "PT", "SE")
STATUSES = ("accepted", "declined", "pending", "refunded", "settled")

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("account_id", pa.int64()),
        ("quantity", pa.int32()),
        ("price", pa.float64()),
        ("score", pa.float64()),
        ("event_time", pa.timestamp("us", "UTC")),
        ("country", pa.string()),
        ("status", pa.string()),
        ("session_id", pa.string()),
        ("url", pa.string()),
        ("is_mobile", pa.bool_()),
    ]
)


@dataclass(frozen=True, slots=True)
class InputFile:
    """One file of the day.

    Attributes:
        body: The Parquet file.
        rows: Its rows.
        min_time: Of its first row.
        max_time: Of its last row.
    """

    body: bytes
    rows: int
    min_time: datetime
    max_time: datetime


def make_file(number: int, rows: int, *, files: int) -> InputFile:
    """The file of this number, of so many on the day; the same bytes whenever it is made."""
    table = _table(number * rows, rows, total=files * rows, seed=number)
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="snappy")
    times = table["event_time"]
    return InputFile(sink.getvalue(), rows, times[0].as_py(), times[-1].as_py())


class Template:
    """A file of which others are made in no time: each with ids and times of its own, the other columns as they are.

    These two columns are neither compressed nor in a dictionary, so that their values can be put in their place.

    Args:
        number: Of the template, which decides on the other columns.
        rows: Of each file.
    """

    #: What the template's ids and times begin with, so that no other bytes of it are taken for one.
    FIRST = {"id": 0x5AD17E3B00000000, "event_time": 0x16A5D94C00000000}  # noqa: RUF012  it is only read
    #: Between the first rows of two files that follow each other.
    STEP_US = 60_000_000

    def __init__(self, number: int, rows: int) -> None:
        times = np.linspace(0, self.STEP_US - 1, rows, dtype=np.int64)
        self._rows, self._values = rows, {"id": np.arange(rows, dtype=np.int64), "event_time": times}
        table = _table(0, rows, total=rows, seed=number)
        for name, values in self._values.items():
            own = pa.array(values + self.FIRST[name]).cast(SCHEMA.field(name).type)
            table = table.set_column(table.column_names.index(name), name, own)
        others = [name for name in table.column_names if name not in self.FIRST]
        codecs = dict.fromkeys(others, "snappy") | dict.fromkeys(self.FIRST, "none")
        sink = io.BytesIO()
        pq.write_table(table, sink, compression=codecs, use_dictionary=others)
        self._body = bytearray(sink.getvalue())
        self._places = {name: self._find(name, values) for name, values in self._values.items()}

    def _find(self, name: str, values: np.ndarray) -> tuple[int, list[tuple[int, int]]]:
        """Where a column's values begin, and where its statistics repeat the first or the last of them."""
        encoded = (values + self.FIRST[name]).tobytes()
        begin, found = self._body.index(encoded), []
        for value in {int(values[0]), int(values[-1])}:
            wanted, at = (value + self.FIRST[name]).to_bytes(8, "little"), -1
            while (at := self._body.find(wanted, at + 1)) >= 0:
                if not begin <= at < begin + len(encoded):
                    found.append((at, value))
        return begin, found

    def make(self, number: int) -> InputFile:
        """The file of this number."""
        first_us = int(DAY.timestamp()) * 1_000_000 + number * self.STEP_US
        shifts = {"id": number * self._rows, "event_time": first_us}
        for name, (begin, repeated) in self._places.items():
            values, shift = self._values[name], shifts[name]
            self._body[begin : begin + values.nbytes] = (values + shift).tobytes()
            for at, value in repeated:
                self._body[at : at + 8] = (value + shift).to_bytes(8, "little")
        after = number * self.STEP_US
        low, high = (DAY + timedelta(microseconds=after + int(self._values["event_time"][at])) for at in (0, -1))
        return InputFile(bytes(self._body), self._rows, low, high)


def _table(first: int, rows: int, *, total: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    ids = np.arange(first, first + rows, dtype=np.int64)
    step_us = DAY_US / total
    times = int(DAY.timestamp() * 1_000_000) + ((ids + rng.random(rows)) * step_us).astype(np.int64)
    country = _choice(rng, COUNTRIES, rows)
    columns = [
        pa.array(ids),
        pa.array((rng.pareto(1.2, rows) * 1_000).astype(np.int64) % 5_000_000),
        pa.array(rng.integers(1, 1_000, rows, dtype=np.int32)),
        pa.array(np.round(rng.lognormal(3, 1, rows), 2)),
        pa.array(rng.normal(size=rows)),
        pa.array(times).cast(SCHEMA.field("event_time").type),
        country,
        _choice(rng, STATUSES, rows),
        _hexadecimal(rng, rows, length=32),
        _urls(rng, country, rows),
        pa.array(rng.random(rows) < 0.6),
    ]
    return pa.table(columns, schema=SCHEMA)


def _choice(rng: np.random.Generator, texts: tuple[str, ...], rows: int) -> pa.Array:
    """Texts of which the first are the most frequent."""
    picked = (rng.random(rows) ** 2 * len(texts)).astype(np.int64)
    return pa.array(texts).take(pa.array(picked))


def _hexadecimal(rng: np.random.Generator, rows: int, *, length: int) -> pa.Array:
    """A random text of hexadecimal digits in every row."""
    offsets = np.arange(0, (rows + 1) * length, length, dtype=np.int32)
    digits = rng.bytes(rows * length // 2).hex().encode()
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(digits))


def _urls(rng: np.random.Generator, country: pa.Array, rows: int) -> pa.Array:
    items = pa.array(rng.integers(1, 200_000, rows)).cast(pa.string())
    visit = _hexadecimal(rng, rows, length=8)
    start = pa.scalar("https://shop.example.com/")
    return pc.binary_join_element_wise(start, country, pa.scalar("/item/"), items, pa.scalar("?visit="), visit, "")

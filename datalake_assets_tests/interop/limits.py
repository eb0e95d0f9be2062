"""What each reader and writer cannot do with the torture table, as data; a test fails when a limit is gone.

Releases: DuckDB 2.0, Polars 2.1, fastparquet 2026.9, Spark 4.3, pyarrow 26, pandas 3.1.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datalake_assets_tests.interop.canonical import Rows

__all__ = ["READER_LIMITS", "UNREADABLE", "WRITER_LIMITS", "Limit", "as_seen", "cannot"]


@dataclass(frozen=True)
class Limit:
    """Columns that are not read, or written, as they are.

    Attributes:
        columns: Of the torture table.
        reason: Why.
        seen: What becomes of a value, in canonical form; None: nothing that could be compared, or an error.
    """

    columns: tuple[str, ...]
    reason: str
    seen: Callable[[Any], Any] | None = None


def as_seen(rows: Rows, limits: Sequence[Limit]) -> Rows:
    """The rows as who has these limits should see them, without the columns that cannot be compared."""
    changes = {name: limit.seen for limit in limits for name in limit.columns if limit.seen}
    lost = cannot(limits)
    return {
        name: [changes[name](value) for value in values] if name in changes else values
        for name, values in rows.items()
        if name not in lost
    }


def cannot(limits: Sequence[Limit]) -> set[str]:
    """The columns that cannot be compared."""
    return {name for limit in limits if limit.seen is None for name in limit.columns}


def _present(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else change(value)


def _float(value: float) -> tuple[str, str]:
    return ("float", "nan" if math.isnan(value) else value.hex())


_without_zone = _present(lambda value: ("calendar", value[1]))
_null_as_nan = Limit(("f32", "f64"), "no masks: nulls become NaN", lambda value: value or _float(math.nan))

_SPARK = (
    Limit(("f16",), "no type: FLOAT16 is refused"),
    Limit(("uuid",), "no type: UUID is refused"),
    Limit(("time_s", "time_ms"), "no type: TIME(MILLIS) is refused"),
    Limit(("time_us", "time_ns"), "its TIME is off by default (spark.sql.timeType.enabled)"),
    Limit(("at_ns", "utc_ns"), "no type: TIMESTAMP(NANOS) is refused"),
    Limit(("duration",), "Parquet has no durations, and only Arrow's schema says so", _present(lambda v: v[1] // 1000)),
)

_FASTPARQUET = (
    _null_as_nan,
    Limit(("f16",), "no FLOAT16: bytes"),
    Limit(("digest",), "numpy's S type: zero bytes at the end are gone", _present(lambda value: value.rstrip(b"\0"))),
    Limit(("uuid",), "no UUID: as digest", _present(lambda value: value.rstrip(b"\0"))),
    Limit(("date",), "no dates: midnights, wrong outside 1677 to 2262"),
    Limit(("time_s", "time_ms"), "no times: milliseconds", _present(lambda value: value[1] // 1_000_000)),
    Limit(("time_us",), "no times: microseconds", _present(lambda value: value[1] // 1_000)),
    Limit(("time_ns",), "no times: nanoseconds", _present(lambda value: value[1])),
    Limit(
        ("utc_s", "utc_ms", "utc_us", "utc_ns", "berlin", "recent"),
        "isAdjustedToUTC is not looked at, only pandas' metadata",
        _without_zone,
    ),
    Limit(("duration",), "Parquet has no durations, and only Arrow's schema says so", _present(lambda v: v[1] // 1000)),
    Limit(("decimal9", "decimal18", "decimal38"), "no decimals: floats, not always the nearest"),
    Limit(("list_list", "points", "point", "deep", "map_points"), "one level of nesting, and no structs"),
)

READER_LIMITS: Mapping[str, Sequence[Limit]] = {
    "pyarrow": (),
    "duckdb": (
        Limit(("uuid",), "a type of its own: text in Arrow", _present(lambda value: str(uuid.UUID(bytes=value)))),
        Limit(("duration",), "as in Spark", _present(lambda value: value[1] // 1000)),
    ),
    "polars": (),
    "fastparquet": _FASTPARQUET,
    "spark": _SPARK,
}

_INT96 = (
    "INT96 has no zone: pyarrow takes it for naive",
    _without_zone,
)
_FASTPARQUET_WRITER = (
    Limit(
        ("f16", "f32", "f64"),
        "pandas' own floats have no nulls apart from NaN",
        lambda v: None if v == _float(math.nan) else v,
    ),
    Limit(("uuid", "date", "time_s", "time_ms", "time_us", "time_ns", "berlin"), "no objects of these types"),
    Limit(("at_s", "utc_s"), "seconds are written as if they were milliseconds"),
    Limit(("duration",), "a time of day, also where it is negative"),
    Limit(("decimal9", "decimal18", "decimal38"), "no decimals: floats"),
    Limit(("list", "texts", "large_list", "pair", "list_list", "points"), "no lists"),
    Limit(("point", "deep", "map", "map_points"), "as JSON"),
)

WRITER_LIMITS: Mapping[str, Sequence[Limit]] = {
    "pyarrow": (),
    "pyarrow-old": (
        Limit(("at_s", "at_ms", "at_us", "utc_s", "utc_ms", "utc_us", "berlin"), "pyarrow reads INT96 of 1677 to 2262"),
        Limit(("utc_ns", "recent"), *_INT96),
        Limit(("duration",), "only Arrow's schema says that it is one", _present(lambda value: value[1] // 1000)),
    ),
    "compatible": (),
    "compact": (),
    "pandas": (),
    "duckdb": (
        Limit(("f16",), "no type"),
        Limit(("duration",), "no negative INTERVAL in Parquet"),
        Limit(("pair",), "writes null arrays such that pyarrow cannot read them"),
    ),
    "polars": (),
    "fastparquet": _FASTPARQUET_WRITER,
    "fastparquet-int96": (
        *_FASTPARQUET_WRITER,
        Limit(("at_ms", "at_us", "utc_ms", "utc_us", "recent"), "right for nanoseconds only"),
        Limit(("utc_ns",), *_INT96),
    ),
    "spark": _SPARK,
    "spark-legacy": (
        *_SPARK,
        Limit(("utc_s", "utc_ms", "utc_us", "berlin"), "pyarrow reads INT96 of 1677 to 2262"),
        Limit(("recent",), *_INT96),
    ),
}

#: Whose files who cannot read.
UNREADABLE: Mapping[tuple[str, str], str] = {
    ("compact", "fastparquet"): "see `test_our_files.py`",
    ("pandas", "fastparquet"): "pandas' metadata names Arrow's types, which it does not know",
    ("fastparquet-int96", "polars"): "pages that it finds out of specification",
}

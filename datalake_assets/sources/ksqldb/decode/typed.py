"""JSON rows to Arrow by way of typed Python values: exact for every type, nested ones too, and able to blame one row.

msgspec checks each value against the column's SQL type while it parses; the values are then turned into Arrow column by
column, children of nested types included, so that no row is ever a dict. Decimals stay text until Arrow reads them: no
number passes through a binary float.

Inside a STRUCT, at any depth, ksqlDB writes other forms than outside: timestamps, dates and times are numbers, and maps
whose key is not a string are lists of pairs.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate, chain
from operator import attrgetter, itemgetter
from types import GenericAlias
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from datalake_assets.sources.ksqldb.sql_types import KsqlArray, KsqlDecimal, KsqlMap, KsqlScalar, KsqlStruct, KsqlType

__all__ = ["Codec", "codec", "gc_paused", "times_from_text", "utc_from_naive", "whole_years"]

Build: TypeAlias = Callable[[Sequence[Any]], pa.Array]

_NULL: Final = b"null"
_NON_FINITE: Final = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
# The years 1 to 9999, which Python, pandas and ISO 8601 text all hold.
_FIRST_MS, _LAST_MS = -62_135_596_800_000, 253_402_300_799_999
_FIRST_DAY, _LAST_DAY = -719_162, 2_932_896
_MS_OF_DAY: Final = 86_400_000
_INT32_MAX: Final = 2**31 - 1
_INT64_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Codec:
    """How one type is read.

    Attributes:
        wire: The type that msgspec checks a value against; null is not part of it.
        build: Python values or None, in order, to an Arrow array. Raises ``ValueError`` (Arrow's included) or
            ``OverflowError`` if one of them does not fit; which one, it does not say.
    """

    wire: Any
    build: Build

    @property
    def nullable(self) -> Any:
        """``wire``, or null."""
        return self.wire if self.wire is msgspec.Raw else self.wire | None  # Raw holds null too


class _GcPause:
    """Counts the pauses of all threads: the first stops the collector, the last restores it."""

    def __init__(self) -> None:
        self._lock, self._depth, self._was_enabled = threading.Lock(), 0, False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if self._depth == 0:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._depth += 1
        try:
            yield
        finally:
            with self._lock:
                self._depth -= 1
                if self._depth == 0 and self._was_enabled:
                    gc.enable()


gc_paused: Final = _GcPause()
"""Context manager: no cyclic garbage collection inside, the former state after.

Decoding makes millions of containers and no cycles; the collector would walk them all, again and again, and triple the
time. Safe to nest and to use from several threads.
"""


def codec(kind: KsqlType, arrow: pa.DataType, *, in_struct: bool = False) -> Codec:
    """The codec of a SQL type and of the Arrow type that ``arrow_schema`` gave it."""
    match kind:
        case KsqlDecimal():
            return Codec(msgspec.Raw, lambda values: _decimals(values, arrow))
        case KsqlArray(item):
            return _list_codec(codec(item, arrow.value_type, in_struct=in_struct), arrow)
        case KsqlMap(key, value):
            return _map_codec(key, codec(value, arrow.item_type, in_struct=in_struct), arrow, in_struct=in_struct)
        case KsqlStruct(fields):
            return _struct_codec(fields, arrow)
        case KsqlScalar(name):
            return _in_struct_codec(name, arrow) if in_struct else _scalar_codec(name, arrow)


def _scalar_codec(name: str, arrow: pa.DataType) -> Codec:
    match name:
        case "DOUBLE":
            return Codec(float | Literal["NaN", "Infinity", "-Infinity"], _doubles)
        case "TIMESTAMP":
            return Codec(str, lambda values: utc_from_naive(pa.array(values, pa.string()).cast(pa.timestamp("ms"))))
        case "DATE":
            return Codec(str, lambda values: whole_years(pa.array(values, pa.string()).cast(arrow)))
        case "TIME":
            return Codec(str, lambda values: times_from_text(pa.array(values, pa.string())))
    wires: dict[str, Any] = {
        "BOOLEAN": bool,
        "INTEGER": Annotated[int, msgspec.Meta(ge=-_INT32_MAX - 1, le=_INT32_MAX)],
        "BIGINT": Annotated[int, msgspec.Meta(ge=-_INT64_MAX - 1, le=_INT64_MAX)],
        "STRING": str,
        "BYTES": bytes,
    }
    return Codec(wires[name], lambda values: pa.array(values, arrow))


def _in_struct_codec(name: str, arrow: pa.DataType) -> Codec:
    bounds = {
        "TIMESTAMP": (_FIRST_MS, _LAST_MS),
        "DATE": (_FIRST_DAY, _LAST_DAY),
        "TIME": (0, _MS_OF_DAY - 1),
    }.get(name)
    if bounds is None:
        return _scalar_codec(name, arrow)
    integers = pa.int64() if name == "TIMESTAMP" else pa.int32()
    wire = Annotated[int, msgspec.Meta(ge=bounds[0], le=bounds[1])]
    return Codec(wire, lambda values: pa.array(values, integers).cast(arrow))


def _doubles(values: Sequence[Any]) -> pa.Array:
    try:
        return pa.array(values, pa.float64())
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # texts among the numbers
        return pa.array([_NON_FINITE[value] if value.__class__ is str else value for value in values], pa.float64())


def _decimals(values: Sequence[msgspec.Raw | None], arrow: pa.DataType) -> pa.Array:
    texts: list[bytes | None] = [_NULL if raw is None else bytes(raw) for raw in values]
    if _NULL in texts:
        texts = [None if text == _NULL else text for text in texts]
    # Arrow's cast refuses what does not fit exactly: more digits, a finer scale, text in quotes.
    return pa.array(texts, pa.string()).cast(arrow)


def utc_from_naive(array: pa.Array) -> pa.Array:
    """Timestamps without zone as what ksqlDB means by them: UTC; no value changes.

    Raises:
        ValueError: A year is not in 1 to 9999.
    """
    return whole_years(array.cast(pa.timestamp("ms", "UTC")))


def whole_years(array: pa.Array) -> pa.Array:
    """The array itself.

    Raises:
        ValueError: A timestamp or a date lies before year 1, which Arrow reads and Python cannot hold.
    """
    first = _FIRST_DAY if pa.types.is_date32(array.type) else _FIRST_MS
    lowest = pc.min(array.cast(pa.int32() if pa.types.is_date32(array.type) else pa.int64())).as_py()
    if lowest is not None and lowest < first:
        raise ValueError("a year before 1 is not a date")
    return array


def times_from_text(array: pa.Array) -> pa.Array:
    """``HH:mm[:ss[.SSS]]`` to time32.

    Raises:
        ValueError: A text is no such time.
    """
    if (pc.min(pc.binary_length(array)).as_py() or 5) < len("HH:mm"):
        raise ValueError("a TIME is HH:mm or HH:mm:ss")
    # Arrow casts no text to time32, but reads timestamps by the same rules.
    instants = pc.binary_join_element_wise("1970-01-01T", array, "").cast(pa.timestamp("ms"))
    return instants.cast(pa.time32("ms"))


def _list_codec(item: Codec, arrow: pa.DataType) -> Codec:
    def build(values: Sequence[list[Any] | None]) -> pa.Array:
        mask = _mask(values)
        children = item.build(list(chain.from_iterable(filter(None, values))))
        return pa.ListArray.from_arrays(_offsets(values, mask), children, type=arrow, mask=mask)

    return Codec(GenericAlias(list, item.nullable), build)


def _map_codec(kind: KsqlType, value: Codec, arrow: pa.DataType, *, in_struct: bool) -> Codec:
    if in_struct and kind != KsqlScalar("STRING"):
        key = codec(kind, arrow.key_type, in_struct=True)
        wire = GenericAlias(list, GenericAlias(tuple, (key.wire, value.nullable)))
        pairs: Callable[[Any], Iterable[tuple[Any, Any]]] = iter
    else:
        key = _key_codec(kind, arrow.key_type)
        wire, pairs = GenericAlias(dict, (str, value.nullable)), dict.items

    def build(values: Sequence[Any]) -> pa.Array:
        mask = _mask(values)
        entries = list(chain.from_iterable(map(pairs, values if mask is None else filter(None, values))))
        keys = key.build(list(map(itemgetter(0), entries)))
        items = value.build(list(map(itemgetter(1), entries)))
        if keys.null_count:
            raise ValueError("a map key is null")
        return pa.MapArray.from_arrays(_offsets(values, mask), keys, items, type=arrow, mask=mask)

    return Codec(wire, build)


def _key_codec(kind: KsqlType, arrow: pa.DataType) -> Codec:
    """Keys of JSON objects: the value's own text, whatever its type."""
    match kind:
        case KsqlScalar("STRING" | "TIMESTAMP" | "DATE" | "TIME"):
            return codec(kind, arrow)
        case KsqlDecimal() | KsqlScalar("BOOLEAN" | "INTEGER" | "BIGINT" | "DOUBLE"):
            return Codec(str, lambda values: pa.array(values, pa.string()).cast(arrow))

    def build(values: Sequence[str]) -> pa.Array:
        if values:
            raise ValueError(f"map keys of type {kind} have no exact text")
        return pa.array([], arrow)

    return Codec(str, build)


def _struct_codec(fields: Sequence[tuple[str, KsqlType]], arrow: pa.DataType) -> Codec:
    """An absent field is null, as in JSON at large; one that the type does not have is refused."""
    children = [codec(kind, arrow.field(i).type, in_struct=True) for i, (_, kind) in enumerate(fields)]
    wire = msgspec.defstruct(
        "Struct",
        [(f"f{i}", child.nullable, None) for i, child in enumerate(children)],
        rename={f"f{i}": name for i, (name, _) in enumerate(fields)},
        forbid_unknown_fields=True,
        gc=False,
    )
    getters = [attrgetter(f"f{i}") for i in range(len(fields))]
    empty = wire()

    def build(values: Sequence[Any]) -> pa.Array:
        mask = _mask(values)
        present = values if mask is None else [empty if value is None else value for value in values]
        arrays = [child.build(list(map(get, present))) for child, get in zip(children, getters, strict=True)]
        return pa.StructArray.from_arrays(arrays, fields=list(arrow), mask=mask)

    return Codec(wire, build)


def _offsets(values: Sequence[Any], mask: pa.Array | None) -> pa.Array:
    sizes = map(len, values) if mask is None else (0 if value is None else len(value) for value in values)
    return pa.array(list(accumulate(sizes, initial=0)), pa.int32())


def _mask(values: Sequence[Any]) -> pa.Array | None:
    absent = [value is None for value in values]
    return pa.array(absent, pa.bool_()) if True in absent else None

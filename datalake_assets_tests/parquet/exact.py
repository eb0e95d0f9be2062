"""A slow, exact reader of ksqlDB rows, written for the tests alone, and strategies for what it should read.

Nothing here is shared with the product: Python's json module keeps every number as its text, and each type is checked
and converted by hand.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import re
from decimal import Context, Decimal, Inexact, InvalidOperation
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from datalake_assets.sources.ksqldb.sql_types import KsqlArray, KsqlDecimal, KsqlMap, KsqlScalar, KsqlStruct

UTC = ZoneInfo("UTC")
EPOCH = dt.datetime(1970, 1, 1, tzinfo=UTC)
EXACT = Context(prec=200, traps=[Inexact, InvalidOperation])


class Number(str):
    """The text of a JSON number."""

    __slots__ = ()


class Bad(ValueError):
    pass


def loads(text):
    def constant(name):
        raise Bad(name)

    try:
        return json.loads(text, parse_int=Number, parse_float=Number, parse_constant=constant)
    except ValueError as error:
        raise Bad(str(error)) from error


def read_line(line, kinds, *, wrapped):
    """The row's values; raises Bad."""
    try:
        value = loads(line.decode())
    except ValueError as error:
        raise Bad(str(error)) from error
    if wrapped:
        need(isinstance(value, dict) and list(value) == ["row"])
        value = value["row"]
        need(isinstance(value, dict) and list(value) == ["columns"])
        value = value["columns"]
    need(isinstance(value, list) and len(value) == len(kinds))
    return [read(kind, each, in_struct=False) for kind, each in zip(kinds, value, strict=True)]


def need(condition):
    if not condition:
        raise Bad


def read(kind, value, *, in_struct):
    if value is None:
        return None
    match kind:
        case KsqlDecimal(precision, scale):
            need(isinstance(value, Number))
            return exact_decimal(value, precision, scale)
        case KsqlArray(item):
            need(isinstance(value, list))
            return [read(item, each, in_struct=in_struct) for each in value]
        case KsqlStruct(fields):
            need(isinstance(value, dict) and set(value) <= {name for name, _ in fields})
            return {name.lower(): read(inner, value.get(name), in_struct=True) for name, inner in fields}
        case KsqlMap():
            return read_map(kind, value, in_struct=in_struct)
    return (
        read_number(kind.name, value, in_struct=in_struct)
        if isinstance(value, Number)
        else read_other(kind.name, value, in_struct=in_struct)
    )


def read_map(kind, value, *, in_struct):
    if in_struct and kind.key != KsqlScalar("STRING"):
        need(isinstance(value, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in value))
        pairs = [(read(kind.key, key, in_struct=True), each) for key, each in value]
        need(all(key is not None for key, _ in pairs))
    else:
        need(isinstance(value, dict))
        quoted = isinstance(kind.key, KsqlScalar) and kind.key.name in {"STRING", "TIMESTAMP", "DATE", "TIME"}
        keys = [key if quoted or key in {"NaN", "Infinity", "-Infinity"} else loads(key) for key in value]
        pairs = list(zip([read(kind.key, key, in_struct=False) for key in keys], value.values(), strict=True))
    return [(key, read(kind.value, each, in_struct=in_struct)) for key, each in pairs]


def exact_decimal(text, precision, scale):
    try:
        value = Decimal(text).quantize(Decimal(1).scaleb(-scale), context=EXACT)
    except ArithmeticError as error:
        raise Bad(text) from error
    need(abs(int(value.scaleb(scale, context=EXACT))) < 10**precision)
    return value or value.copy_abs()


def read_number(name, text, *, in_struct):
    if name == "DOUBLE":
        need(abs(float(text)) != float("inf"))
        return float(text)
    need(re.fullmatch("-?[0-9]+", text))
    number = int(text)
    match name:
        case "INTEGER" | "BIGINT":
            bound = 2**31 if name == "INTEGER" else 2**63
            need(-bound <= number < bound)
            return number
        case "TIMESTAMP" if in_struct:
            return instant(number)
        case "DATE" if in_struct:
            need(-719_162 <= number <= 2_932_896)
            return dt.date(1970, 1, 1) + dt.timedelta(days=number)
        case "TIME" if in_struct:
            need(0 <= number < 86_400_000)
            return (EPOCH + dt.timedelta(milliseconds=number)).time()
    raise Bad(text)


def instant(number):
    try:
        return EPOCH + dt.timedelta(milliseconds=number)
    except OverflowError as error:
        raise Bad(str(number)) from error


def read_other(name, value, *, in_struct):
    if name == "BOOLEAN":
        need(isinstance(value, bool))
        return value
    need(isinstance(value, str))
    if name == "DOUBLE":
        need(value in {"NaN", "Infinity", "-Infinity"})
        return float(value)
    need(name in {"STRING", "BYTES"} or not in_struct)
    try:
        return read_text(name, value)
    except ValueError as error:
        raise Bad(value) from error


def read_text(name, value):
    value.encode()
    match name:
        case "STRING":
            return value
        case "BYTES":
            return base64.b64decode(value, validate=True)
        case "TIMESTAMP":
            need(re.fullmatch(r"\d{4}-\d\d-\d\d([ T]\d\d(:\d\d(:\d\d(\.\d{1,3})?)?)?)?", value, re.ASCII))
            return dt.datetime.fromisoformat(value).replace(tzinfo=UTC)
        case "DATE":
            need(re.fullmatch(r"\d{4}-\d\d-\d\d", value, re.ASCII))
            return dt.date.fromisoformat(value)
        case "TIME":
            need(re.fullmatch(r"\d\d:\d\d(:\d\d(\.\d{1,3})?)?", value, re.ASCII))
            return dt.time.fromisoformat(value)
    raise Bad(name)


# strategies

SCALARS = ["BOOLEAN", "INTEGER", "BIGINT", "DOUBLE", "STRING", "BYTES", "TIMESTAMP", "DATE", "TIME"]


@st.composite
def decimals(draw):
    precision = draw(st.one_of(st.integers(1, 38), st.integers(1, 76)))
    return KsqlDecimal(precision, draw(st.integers(0, precision)))


flat_kinds = st.one_of(st.sampled_from(SCALARS).map(KsqlScalar), decimals())
map_keys = st.one_of(
    st.just(KsqlScalar("STRING")),
    st.sampled_from(["BOOLEAN", "INTEGER", "BIGINT", "DOUBLE", "DATE"]).map(KsqlScalar),
    decimals(),
)
field_names = st.sampled_from(["A", "b", "C d", "é", "`", "_1"])
nested_kinds = st.recursive(
    flat_kinds,
    lambda inner: st.one_of(
        st.builds(KsqlArray, inner),
        st.builds(KsqlMap, map_keys, inner),
        st.lists(st.tuples(field_names, inner), min_size=1, max_size=4, unique_by=lambda field: field[0].lower()).map(
            lambda fields: KsqlStruct(tuple(fields))
        ),
    ),
    max_leaves=6,
)

nasty_texts = st.one_of(
    st.text(max_size=12),
    st.text(alphabet='\\"\n\r\t/,[]{}:nutf0 \u2028\u0085\x00é😀', max_size=12),
    st.sampled_from(["null", "true", "NaN", "123", '{"row":{"columns":[', "]}},", "a" * 300, "'", "\ufeff"]),
)
dates = st.one_of(st.dates(), st.sampled_from([dt.date.min, dt.date.max, dt.date(1970, 1, 1)]))
moments = st.one_of(
    st.integers(-62_135_596_800_000, 253_402_300_799_999),
    st.sampled_from([0, -1, -62_135_596_800_000, 253_402_300_799_999]),
)


def json_text(value, draw):
    """A JSON text of a Python string, escaped in one of the ways that servers choose."""
    plain = json.dumps(value, ensure_ascii=draw(st.booleans()))
    return plain.replace("/", "\\/") if draw(st.booleans()) else plain


def timestamp_text(number):
    return (EPOCH.replace(tzinfo=None) + dt.timedelta(milliseconds=number)).isoformat(timespec="milliseconds")


@st.composite
def wire(draw, kind, *, in_struct=False, nullable=True):
    """The JSON text of a value of a type, as ksqlDB writes it."""
    if nullable and draw(st.integers(0, 9)) == 0:
        return "null"
    match kind:
        case KsqlDecimal(precision, scale):
            return draw(decimal_texts(precision, scale, in_struct=in_struct))
        case KsqlArray(item):
            return "[" + ",".join(draw(st.lists(wire(item, in_struct=in_struct), max_size=3))) + "]"
        case KsqlStruct(fields):
            parts = [f"{json_text(name, draw)}:{draw(wire(inner, in_struct=True))}" for name, inner in fields]
            return "{" + ",".join(parts) + "}"
        case KsqlMap():
            return draw(map_texts(kind, in_struct=in_struct))
    return draw(scalar_texts(kind.name, in_struct=in_struct))


@st.composite
def map_texts(draw, kind, *, in_struct):
    keys = draw(st.lists(wire(kind.key, in_struct=in_struct, nullable=False), max_size=3, unique_by=loads))
    values = [draw(wire(kind.value, in_struct=in_struct)) for _ in keys]
    if in_struct and kind.key != KsqlScalar("STRING"):
        return "[" + ",".join(f"[{key},{value}]" for key, value in zip(keys, values, strict=True)) + "]"
    quoted = [key if key.startswith('"') else f'"{key}"' for key in keys]
    return "{" + ",".join(f"{key}:{value}" for key, value in zip(quoted, values, strict=True)) + "}"


@st.composite
def decimal_texts(draw, precision, scale, *, in_struct):
    bound = 10**precision - 1
    unscaled = draw(st.one_of(st.integers(-bound, bound), st.sampled_from([0, 1, -1, bound, -bound])))
    value = Decimal(unscaled).scaleb(-scale, context=EXACT)
    if in_struct and precision <= 15:
        return repr(float(value)).replace("e", "E")
    return f"{value:f}"


@st.composite
def scalar_texts(draw, name, *, in_struct):  # noqa: PLR0911 - one return per type
    match name:
        case "BOOLEAN":
            return draw(st.sampled_from(["true", "false"]))
        case "INTEGER" | "BIGINT":
            bound = 2**31 if name == "INTEGER" else 2**63
            return str(draw(st.one_of(st.integers(-bound, bound - 1), st.sampled_from([0, -bound, bound - 1]))))
        case "DOUBLE":
            number = draw(st.floats())
            special = {"nan": '"NaN"', "inf": '"Infinity"', "-inf": '"-Infinity"'}
            return special.get(repr(number), repr(number).replace("e+", "E").replace("e", "E"))
        case "STRING":
            return json_text(draw(nasty_texts), draw)
        case "BYTES":
            return '"' + base64.b64encode(draw(st.binary(max_size=10))).decode() + '"'
        case "TIMESTAMP":
            number = draw(moments)
            return str(number) if in_struct else f'"{timestamp_text(number)}"'
        case "DATE":
            day = draw(dates)
            return str((day - dt.date(1970, 1, 1)).days) if in_struct else f'"{day.isoformat()}"'
    time = draw(st.times().map(lambda at: at.replace(microsecond=0)))
    if in_struct:
        return str((time.hour * 3600 + time.minute * 60 + time.second) * 1000)
    return f'"{time.isoformat() if time.second else time.isoformat(timespec="minutes")}"'

"""Values in Avro: their fields as columns, and how fastavro's values become what Arrow takes."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import fastavro
import pyarrow as pa

from datalake_assets.sources.message_values import Refused

__all__ = ["AvroDecoding"]

#: A column's type, and what is made of fastavro's values; None if nothing.
_Mapped: TypeAlias = tuple[pa.DataType, Callable[[Any], Any] | None]

_PRIMITIVES: Mapping[str, pa.DataType] = {
    "null": pa.null(),
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
}
# Avro specification 1.12, "Logical Types": what a primitive or fixed type stands for; others stand for themselves
_LOGICAL: Mapping[tuple[str, str], _Mapped] = {
    ("int", "date"): (pa.date32(), None),
    ("int", "time-millis"): (pa.time32("ms"), None),
    ("long", "time-micros"): (pa.time64("us"), None),
    ("long", "timestamp-millis"): (pa.timestamp("ms", "UTC"), None),
    ("long", "timestamp-micros"): (pa.timestamp("us", "UTC"), None),
    ("long", "timestamp-nanos"): (pa.timestamp("ns", "UTC"), None),
    ("long", "local-timestamp-millis"): (pa.timestamp("ms"), None),
    ("long", "local-timestamp-micros"): (pa.timestamp("us"), None),
    ("long", "local-timestamp-nanos"): (pa.timestamp("ns"), None),
}
#: Digits of the widest decimal (Iceberg specification, "Primitive Types").
_DIGITS = 38
#: What fastavro raises of a value that its schema does not fit.
_UNDECODED = (ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, StopIteration, ArithmeticError)


class AvroDecoding:
    """Implements `datalake_assets.sources.kafka.schema_registry.Decoding`.

    Args:
        is_whole: Whether records are one column, too.
    """

    type = "AVRO"
    text_format = None

    def __init__(self, *, is_whole: bool = False) -> None:
        self._is_whole = is_whole

    def split(self, value: bytes) -> tuple[None, bytes]:
        """A schema is of one thing."""
        return None, value

    def decoded(
        self,
        schema: str,
        references: Mapping[str, str],
        what: None,  # noqa: ARG002  `Decoding`
    ) -> tuple[Sequence[pa.Field], Callable[[bytes], Sequence[Any]]]:
        """The fields of a record; of what is none, the one column ``value``.

        Raises:
            Refused: No columns can hold them; says which field.
        """
        named: dict[str, Any] = {}
        try:
            for each in references.values():
                fastavro.parse_schema(json.loads(each, object_hook=_plain_uuid), named)
            parsed = fastavro.parse_schema(json.loads(schema, object_hook=_plain_uuid), named)
        except (ValueError, KeyError, fastavro.schema.SchemaParseException) as error:
            raise Refused(f"its schema is none of Avro: {error}") from error
        mapping = _Mapping(named)
        if isinstance(parsed, dict) and parsed["type"] == "record" and not self._is_whole:
            columns = [(each["name"], *mapping.of(each["type"], each["name"])) for each in parsed["fields"]]
            take = _taking([(name, convert) for name, _, convert in columns])
            return [pa.field(name, type_) for name, type_, _ in columns], _reading(parsed, take)
        type_, convert = mapping.of(parsed, "value")
        return [pa.field("value", type_)], _reading(parsed, lambda value: (_made(convert, value),))


def _plain_uuid(schema: dict[str, Any]) -> dict[str, Any]:
    """A text that is a UUID as the text that it is: fastavro would write its letters small, and refuse some."""
    is_uuid = schema.get("type") == "string" and schema.get("logicalType") == "uuid"
    return {name: value for name, value in schema.items() if not (is_uuid and name == "logicalType")}


def _taking(columns: Sequence[tuple[str, Callable[[Any], Any] | None]]) -> Callable[[Any], Sequence[Any]]:
    if all(convert is None for _, convert in columns):
        return lambda record: list(record.values())
    return lambda record: [_made(convert, record[name]) for name, convert in columns]


def _made(convert: Callable[[Any], Any] | None, value: Any) -> Any:
    return value if convert is None or value is None else convert(value)


def _reading(parsed: Any, take: Callable[[Any], Sequence[Any]]) -> Callable[[bytes], Sequence[Any]]:
    def read(value: bytes) -> Sequence[Any]:
        stream = io.BytesIO(value)
        try:
            values = take(fastavro.schemaless_reader(stream, parsed, None))
        except _UNDECODED as error:
            raise Refused(f"it does not fit its schema: {type(error).__name__}: {error}") from error
        if stream.tell() != len(value):
            raise Refused(f"{len(value) - stream.tell()} bytes are left over behind what its schema says")
        return values

    return read


class _Mapping:
    """Avro's types as Arrow's.

    Args:
        named: Types by their names.
    """

    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = named
        self._within: list[str] = []

    def of(self, schema: Any, path: str) -> _Mapped:
        """The column of a type.

        Args:
            schema: As `fastavro.parse_schema` gives it.
            path: Its name, for the message.

        Raises:
            Refused: No column can hold it.
        """
        if isinstance(schema, list):
            return self._union(schema, path)
        if isinstance(schema, str):
            return (_PRIMITIVES[schema], None) if schema in _PRIMITIVES else self.of(self._named[schema], path)
        kind = schema["type"]
        if not isinstance(kind, str):
            return self.of(kind, path)
        if kind in _PRIMITIVES:
            return self._primitive(schema, path)
        made: Mapping[str, Callable[[Any, str], _Mapped]] = {
            "record": self._record,
            "error": self._record,
            "array": self._array,
            "map": self._map,
            "fixed": self._fixed,
            "enum": lambda _schema, _path: (pa.string(), None),
        }
        return made[kind](schema, path) if kind in made else self.of(self._named[kind], path)

    def _union(self, branches: Sequence[Any], path: str) -> _Mapped:
        some = [each for each in branches if each != "null"]
        if len(some) > 1:
            raise Refused(f"{path} is a union of {len(some)} types, which no column can hold")
        return self.of(some[0], path) if some else (pa.null(), None)

    def _primitive(self, schema: Mapping[str, Any], path: str) -> _Mapped:
        kind, logical = schema["type"], schema.get("logicalType", "")
        if logical == "decimal" and kind == "bytes":
            return self._decimal(schema, path)
        return _LOGICAL.get((kind, logical), (_PRIMITIVES[kind], None))

    def _decimal(self, schema: Mapping[str, Any], path: str) -> _Mapped:
        precision, scale = int(schema["precision"]), int(schema.get("scale", 0))
        if precision > _DIGITS:
            raise Refused(f"{path} is a decimal of {precision} digits; columns hold {_DIGITS}")
        return pa.decimal128(precision, scale), None

    def _fixed(self, schema: Mapping[str, Any], path: str) -> _Mapped:
        if schema.get("logicalType") == "decimal":
            return self._decimal(schema, path)
        return pa.binary(schema["size"]), None

    def _array(self, schema: Mapping[str, Any], path: str) -> _Mapped:
        type_, convert = self.of(schema["items"], f"{path}[]")
        return pa.list_(type_), None if convert is None else lambda values: [_made(convert, each) for each in values]

    def _map(self, schema: Mapping[str, Any], path: str) -> _Mapped:
        type_, convert = self.of(schema["values"], f"{path}{{}}")
        return pa.map_(pa.string(), type_), lambda value: [(key, _made(convert, each)) for key, each in value.items()]

    def _record(self, schema: Mapping[str, Any], path: str) -> _Mapped:
        name = schema["name"]
        if name in self._within:
            raise Refused(f"{path} holds records of its own kind, {name}, which no column can hold")
        self._within.append(name)
        fields = [(each["name"], *self.of(each["type"], f"{path}.{each['name']}")) for each in schema["fields"]]
        self._within.pop()
        if not fields:
            raise Refused(f"{path} is a record without fields, which no column can hold")
        type_ = pa.struct([pa.field(name, each) for name, each, _ in fields])
        if all(convert is None for _, _, convert in fields):
            return type_, None
        return type_, lambda record: {name: _made(convert, record[name]) for name, _, convert in fields}

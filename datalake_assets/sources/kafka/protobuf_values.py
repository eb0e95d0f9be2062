"""Values in Protobuf: their fields as columns, by the descriptors that a registry gives for their schemas."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import pyarrow as pa
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from datalake_assets.sources.message_values import Refused

__all__ = ["ProtobufDecoding"]

#: A column's type, and what is made of a field's value.
_Mapped: TypeAlias = tuple[pa.DataType, Callable[[Any], Any] | None]

_SCALARS: Mapping[int, pa.DataType] = {
    FieldDescriptor.CPPTYPE_INT32: pa.int32(),
    FieldDescriptor.CPPTYPE_INT64: pa.int64(),
    FieldDescriptor.CPPTYPE_UINT32: pa.int64(),
    FieldDescriptor.CPPTYPE_UINT64: pa.decimal128(20, 0),  # few readers of Parquet know unsigned numbers
    FieldDescriptor.CPPTYPE_DOUBLE: pa.float64(),
    FieldDescriptor.CPPTYPE_FLOAT: pa.float32(),
    FieldDescriptor.CPPTYPE_BOOL: pa.bool_(),
}
_TIMESTAMP, _DURATION = "google.protobuf.Timestamp", "google.protobuf.Duration"
_NANOS = 1_000_000_000
#: Protobuf encoding, "Base 128 Varints": seven bits a byte, and whether another follows. Here 32 bits are enough.
_MORE, _LONGEST_VARINT_BITS = 0x80, 35
#: Messages of one field that stand for a scalar which may be missing.
_WRAPPERS = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)


class ProtobufDecoding:
    """Implements `datalake_assets.sources.kafka.schema_registry.Decoding`; a registry gives descriptors in base64."""

    type = "PROTOBUF"
    text_format = "serialized"

    def split(self, value: bytes) -> tuple[tuple[int, ...], bytes]:
        """Which of a file's messages it is, by their numbers from without inwards."""
        count, at = _varint(value, 0)
        if count == 0:  # Confluent wire format: short for the first message
            return (0,), value[at:]
        path = []
        for _ in range(count):
            number, at = _varint(value, at)
            path.append(number)
        return tuple(path), value[at:]

    def decoded(
        self, schema: str, references: Mapping[str, str], what: tuple[int, ...] | None
    ) -> tuple[Sequence[pa.Field], Callable[[bytes], Sequence[Any]]]:
        """The fields of a message.

        Raises:
            Refused: No columns can hold them; says which field.
        """
        file = _file(schema, references)
        descriptor = _message(file, what or (0,))
        fields = [(each, *_field(each, each.name, ())) for each in descriptor.fields]
        made = message_factory.GetMessageClass(descriptor)

        def read(value: bytes) -> Sequence[Any]:
            try:
                message = made.FromString(value)
            except DecodeError as error:
                raise Refused(f"it does not fit its schema: {error}") from error
            return [_value(message, field, convert) for field, _, convert in fields] if _is_known(message) else []

        return [pa.field(each.name, type_) for each, type_, _ in fields], read


def _varint(value: bytes, at: int) -> tuple[int, int]:
    """A number in Protobuf's zigzag, and where it ends."""
    number = shift = 0
    while at < len(value) and shift < _LONGEST_VARINT_BITS:
        byte = value[at]
        at += 1
        number |= (byte & (_MORE - 1)) << shift
        if byte < _MORE:
            return (number >> 1) ^ -(number & 1), at
        shift += 7
    raise Refused("it does not say which message of its schema it is")


def _file(schema: str, references: Mapping[str, str]) -> FileDescriptor:
    pool = descriptor_pool.DescriptorPool()
    _add_well_known(pool)
    try:
        for name, each in references.items():
            _added(pool, each, name)
        return pool.FindFileByName(_added(pool, schema, ""))
    except (ValueError, KeyError, TypeError, DecodeError) as error:
        raise Refused(f"its schema is none of Protobuf: {error}") from error


def _added(pool: descriptor_pool.DescriptorPool, encoded: str, name: str) -> str:
    file = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(encoded))
    file.name = name or file.name or "schema.proto"
    pool.Add(file)
    return str(file.name)


def _add_well_known(pool: descriptor_pool.DescriptorPool) -> None:
    """The types that come with Protobuf, which registries leave out."""
    from google.protobuf import any_pb2, duration_pb2, empty_pb2, struct_pb2, timestamp_pb2, wrappers_pb2  # noqa: PLC0415

    for module in (any_pb2, duration_pb2, empty_pb2, struct_pb2, timestamp_pb2, wrappers_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)


def _message(file: FileDescriptor, path: Sequence[int]) -> Descriptor:
    found: Any = None
    within = list(file.message_types_by_name.values())
    for number in path:
        if not 0 <= number < len(within):
            raise Refused(f"its schema has no message {'.'.join(map(str, path))}")
        found = within[number]
        within = list(found.nested_types)
    return found


def _field(field: FieldDescriptor, path: str, within: tuple[str, ...]) -> _Mapped:
    """The column of a field.

    Raises:
        Refused: No column can hold it.
    """
    if _is_map(field):
        key, item = field.message_type.fields_by_name["key"], field.message_type.fields_by_name["value"]
        key_type, _ = _single(key, path, within)
        item_type, convert = _single(item, path, within)
        return pa.map_(key_type, item_type), lambda found: [(each, _made(convert, found[each])) for each in found]
    type_, convert = _single(field, path, within)
    if field.is_repeated:
        return pa.list_(type_), lambda found: [_made(convert, each) for each in found]
    return type_, convert


def _single(field: FieldDescriptor, path: str, within: tuple[str, ...]) -> _Mapped:
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return (pa.binary() if field.type == FieldDescriptor.TYPE_BYTES else pa.string()), None
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        names = field.enum_type.values_by_number
        return pa.string(), lambda number: names[number].name if number in names else str(number)
    if field.cpp_type != FieldDescriptor.CPPTYPE_MESSAGE:
        return _SCALARS[field.cpp_type], None
    return _nested(field.message_type, path, within)


def _nested(message: Descriptor, path: str, within: tuple[str, ...]) -> _Mapped:
    name = message.full_name
    if name == _TIMESTAMP:
        return pa.timestamp("ns", "UTC"), lambda found: found.seconds * _NANOS + found.nanos
    if name == _DURATION:
        return pa.duration("ns"), lambda found: found.seconds * _NANOS + found.nanos
    if name in _WRAPPERS:
        type_, _ = _single(message.fields_by_name["value"], path, within)
        return type_, lambda found: found.value
    if name in within:
        raise Refused(f"{path} holds messages of its own kind, {name}, which no column can hold")
    fields = [(each, *_field(each, f"{path}.{each.name}", (*within, name))) for each in message.fields]
    if not fields:
        raise Refused(f"{path} is a message without fields, which no column can hold")
    type_ = pa.struct([pa.field(each.name, kind) for each, kind, _ in fields])

    def made(found: Any) -> dict[str, Any]:
        _is_known(found)
        return {field.name: _value(found, field, convert) for field, _, convert in fields}

    return type_, made


def _is_map(field: FieldDescriptor) -> bool:
    message = field.message_type
    return bool(field.is_repeated and message is not None and message.GetOptions().map_entry)


def _value(message: Any, field: FieldDescriptor, convert: Callable[[Any], Any] | None) -> Any:
    """A field's value; None of one that can be missing, and is."""
    if field.has_presence and not message.HasField(field.name):
        return None
    return _made(convert, getattr(message, field.name))


def _made(convert: Callable[[Any], Any] | None, value: Any) -> Any:
    return value if convert is None else convert(value)


def _is_known(message: Any) -> bool:
    """Whether a message has only fields of its schema; others would be left out.

    Raises:
        Refused: It has others.
    """
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise Refused(f"field {unknown[0].field_number} is none of its schema")
    return True

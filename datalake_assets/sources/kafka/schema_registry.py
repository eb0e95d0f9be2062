"""A schema registry: what it says of a topic's values, and how values that name their schema become columns.

The columns are the fields of all versions of a subject, so that no message has a field which is left out. Each message
is decoded by the schema that it was written with; fields that this lacks are null. A message whose schema has a field,
or a type, that the columns have no place for ends the read where it stands if its schema was registered since the read
began, and goes to quarantine otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import methodcaller
from typing import Any, Protocol, TypeAlias, TypeVar

import httpx2
import pyarrow as pa
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from datalake_assets.errors import ConfigError, SourceError, SourceRefused, SourceUnavailable
from datalake_assets.exchanges import WHOLE_S, HttpxConnections
from datalake_assets.sources.kafka.avro_values import AvroDecoding
from datalake_assets.sources.kafka.kafka_model import KafkaSettings, KafkaSource
from datalake_assets.sources.kafka.messages import ColumnsChanged
from datalake_assets.sources.kafka.protobuf_values import ProtobufDecoding
from datalake_assets.sources.message_values import Refused, ValueFormat

__all__ = ["FORMATS", "Decoded", "Decoding", "Registry"]

T = TypeVar("T")
#: Seconds that a question may take, with all that is tried for it.
_WHOLE_S = WHOLE_S
#: A value's fields by the schema that it was written with, and what gives their values.
Decoded: TypeAlias = tuple[Sequence[pa.Field], Callable[[bytes], Sequence[Any]]]


class Decoding(Protocol):
    """How values of one kind of schema are decoded.

    Attributes:
        type: The registry's name of the kind.
        text_format: In which form the registry is asked for schemas; None for its own.
    """

    @property
    def type(self) -> str: ...  # noqa: D102  see above
    @property
    def text_format(self) -> str | None: ...  # noqa: D102

    def split(self, value: bytes) -> tuple[Any, bytes]:
        """What in a schema a value is of, and the value proper, of what follows the schema's id.

        Raises:
            Refused: It is no such value.
        """

    def decoded(self, schema: str, references: Mapping[str, str], what: Any) -> Decoded:
        """The fields of a schema.

        Args:
            schema: The schema, as the registry has it.
            references: Schemas that it refers to, by the names that it uses; those that others need come first.
            what: What of it is wanted; None for what there is first.

        Raises:
            Refused: No columns can hold them; says which field.
        """


FORMATS: Mapping[str, Callable[[], Decoding]] = {"avro": AvroDecoding, "protobuf": ProtobufDecoding}

#: Confluent wire format: a zero, the schema's id in four bytes, then the value.
_MAGIC, _ID_BYTES = 0, 4
_NOT_FOUND, _UNAUTHORIZED, _FORBIDDEN = 404, 401, 403


class Registry:
    """A schema registry, by an installation's settings; asked for nothing before it is needed.

    Args:
        settings: Where it is, and who asks.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client: SchemaRegistryClient | None = None
        self._connections = HttpxConnections()

    def value_format(self, source: KafkaSource) -> ValueFormat:
        """The format of a feed's values.

        Raises:
            SourceError: The registry failed, or does not know them.
            ConfigError: The settings name no registry.
        """
        return _Registered(self, FORMATS[source.value_format](), source.subject or f"{source.topic}-value")

    def key_format(self, source: KafkaSource) -> ValueFormat:
        """The format of a feed's keys: one column, whatever they have.

        Raises:
            SourceError: The registry failed, or does not know them.
            ConfigError: The settings name no registry.
        """
        return _Registered(self, AvroDecoding(is_whole=True), f"{source.topic}-key")

    def versions(self, subject: str, form: str | None) -> dict[int, Schema]:
        """The schemas of a subject, the oldest first, by their ids.

        Raises:
            SourceError: The registry failed, or does not know the subject.
        """
        with self._translated(f"subject {subject}"):
            numbers = sorted(self._asked(methodcaller("get_versions", subject)))
            found = [self._asked(methodcaller("get_version", subject, number, fmt=form)) for number in numbers]
            return {each.schema_id or 0: each.schema for each in found}

    def schema(self, number: int, form: str | None) -> Schema | None:
        """The schema of an id; None if there is none.

        Raises:
            SourceError: The registry failed.
        """
        try:
            with self._translated(f"schema {number}"):
                return self._asked(lambda client: client.get_schema(number, fmt=form))
        except SourceRefused as error:
            if isinstance(error.__cause__, SchemaRegistryError) and error.__cause__.http_status_code == _NOT_FOUND:
                return None
            raise

    def references(self, schema: Schema, form: str | None) -> dict[str, str]:
        """What a schema refers to, by the names that it uses, and what that refers to before it.

        Raises:
            SourceError: The registry failed.
        """
        found: dict[str, str] = {}
        for each in schema.references or ():
            with self._translated(f"subject {each.subject}"):
                named = each.subject or "", each.version or 0
                referred = self._asked(methodcaller("get_version", *named, fmt=form)).schema
            found |= self.references(referred, form)
            found[each.name or ""] = referred.schema_str or ""
        return found

    @property
    def _connected(self) -> SchemaRegistryClient:
        if self._client is None:
            self._client = SchemaRegistryClient(_configuration(self._settings))
            session = self._client._rest_client.session  # noqa: SLF001  there is no other way to its connections
            session.event_hooks = {"request": [self._connections.begin]}
        return self._client

    def _asked(self, question: Callable[[SchemaRegistryClient], T]) -> T:
        """An answer, with all that is tried for it, in time."""
        client = self._connected
        with self._connections.bounded(max(_WHOLE_S, 2 * self._settings.kafka_timeout_s)):
            return question(client)

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        source = f"schema registry {self._settings.kafka_registry_url} {what}"
        try:
            yield
        except SchemaRegistryError as error:
            raise _failure(source, error) from error
        except (httpx2.HTTPError, OSError) as error:
            raise SourceUnavailable(source, str(error) or type(error).__name__) from error


def _failure(source: str, error: SchemaRegistryError) -> SourceError:
    if error.http_status_code == _NOT_FOUND:
        return SourceRefused(source, "the registry has none", cure="correct the feed's topic or subject")
    if error.http_status_code in (_UNAUTHORIZED, _FORBIDDEN):
        cure = "set DATALAKE_KAFKA_REGISTRY_USER and DATALAKE_KAFKA_REGISTRY_PASSWORD"
        return SourceRefused(source, "wrong user or password, or not allowed", cure=cure)
    return SourceUnavailable(source, f"HTTP {error.http_status_code}: {error.error_message}")


def _configuration(settings: KafkaSettings) -> dict[str, Any]:
    if not settings.kafka_registry_url:
        raise ConfigError("values in Avro or Protobuf need a schema registry: set DATALAKE_KAFKA_REGISTRY_URL")
    found: dict[str, Any] = {"url": settings.kafka_registry_url, "timeout": settings.kafka_timeout_s}
    if settings.kafka_registry_user and settings.kafka_registry_password:
        password = settings.kafka_registry_password.get_secret_value()
        found["basic.auth.user.info"] = f"{settings.kafka_registry_user}:{password}"
    if settings.kafka_registry_ca_file:
        found["ssl.ca.location"] = settings.kafka_registry_ca_file
    return found


class _Registered:
    """Values that name their schema; implements `ValueFormat`.

    Args:
        registry: Has the schemas.
        decoding: Decodes values of this kind.
        subject: Whose schemas are the feed's.

    Raises:
        SourceError: The registry failed, or does not know the subject.
    """

    def __init__(self, registry: Registry, decoding: Decoding, subject: str) -> None:
        self._registry, self._decoding, self._subject = registry, decoding, subject
        self._readers: dict[tuple[int, Any], Callable[[bytes], Sequence[Any]]] = {}
        self._known = registry.versions(subject, decoding.text_format)
        columns: dict[str, pa.Field] = {}
        for number, schema in self._known.items():
            try:
                fields, _ = self._decoded(schema, None)
            except Refused as error:
                where = f"schema registry {subject} schema {number}"
                cure = "land the values as they are (value: binary), or register a schema that has columns"
                raise SourceRefused(where, str(error), cure=cure) from error
            for field in fields:
                known = columns.get(field.name)
                columns[field.name] = field if known is None else field.with_type(_wider(known.type, field.type))
        self.columns: Sequence[pa.Field] = tuple(columns.values())

    def _decoded(self, schema: Schema, what: Any) -> Decoded:
        if (schema.schema_type or "AVRO") != self._decoding.type:
            raise Refused(f"it is a schema of type {schema.schema_type}, not {self._decoding.type}")
        references = self._registry.references(schema, self._decoding.text_format)
        return self._decoding.decoded(schema.schema_str or "", references, what)

    def arrays(self, values: Sequence[bytes]) -> None:
        """Implements `ValueFormat`: each names its schema."""

    def values(self, value: bytes) -> Sequence[Any]:
        """Implements `ValueFormat`."""
        if len(value) <= _ID_BYTES or value[0] != _MAGIC:
            raise Refused("it does not begin with the id of a schema, as Confluent's serializers write it")
        number = int.from_bytes(value[1 : 1 + _ID_BYTES], "big")
        what, proper = self._decoding.split(value[1 + _ID_BYTES :])
        reader = self._readers.get((number, what))
        if reader is None:
            reader = self._readers[number, what] = self._reader_or_refusal(number, what)
        return reader(proper)

    def _reader_or_refusal(self, number: int, what: Any) -> Callable[[bytes], Sequence[Any]]:
        """Refuses what cannot be read as often as it comes; the registry is asked once."""
        try:
            return self._reader(number, what)
        except Refused as error:
            reason = str(error)

        def refuse(_: bytes) -> Sequence[Any]:
            raise Refused(reason)

        return refuse

    def _reader(self, number: int, what: Any) -> Callable[[bytes], Sequence[Any]]:
        schema = self._known.get(number) or self._registry.schema(number, self._decoding.text_format)
        if schema is None:
            raise Refused(f"the registry has no schema {number}")
        fields, decode = self._decoded(schema, what)
        columns = {each.name: each.type for each in self.columns}
        for field in fields:
            column = columns.get(field.name)
            if column is None or not _is_held(field.type, column):
                self._refuse(number, field, column)
        places = {field.name: place for place, field in enumerate(fields)}
        order = [places.get(each.name) for each in self.columns]
        if order == list(range(len(fields))):
            return decode

        def placed(value: bytes) -> Sequence[Any]:
            values = decode(value)
            return [None if place is None else values[place] for place in order]

        return placed

    def _refuse(self, number: int, field: pa.Field, column: pa.DataType | None) -> None:
        is_new = number not in self._known
        if is_new and number in self._registry.versions(self._subject, self._decoding.text_format):
            raise ColumnsChanged(f"schema {number} of {self._subject} was registered while it was being read")
        held = f"is {column}" if column is not None else "is none"
        raise Refused(f"field {field.name!r} of schema {number} is {field.type}, and {held} in the feed's columns")


#: Types in which those before them fit, without loss but for numbers beyond 2^53, which are refused one by one.
_NUMBERS = (pa.int32(), pa.int64(), pa.float32(), pa.float64())


def _wider(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type of a column that has been both; the later one where none holds both."""
    if one == other:
        return one
    if one in _NUMBERS and other in _NUMBERS:
        wider = max(one, other, key=_NUMBERS.index)
        return pa.float64() if wider == pa.float32() else wider
    if pa.types.is_struct(one) and pa.types.is_struct(other):
        fields = {each.name: each for each in one}
        for each in other:
            known = fields.get(each.name)
            fields[each.name] = each if known is None else each.with_type(_wider(known.type, each.type))
        return pa.struct(list(fields.values()))
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(_wider(one.value_type, other.value_type))
    if pa.types.is_map(one) and pa.types.is_map(other):
        return pa.map_(other.key_type, _wider(one.item_type, other.item_type))
    return other


def _is_held(type_: pa.DataType, column: pa.DataType) -> bool:
    """Whether a column holds values of a type as what they are."""
    if type_ == column:
        return True
    if type_ in _NUMBERS and column in _NUMBERS:
        return _NUMBERS.index(type_) <= _NUMBERS.index(column)
    if pa.types.is_struct(type_) and pa.types.is_struct(column):
        held = {each.name: each.type for each in column}
        return all(each.name in held and _is_held(each.type, held[each.name]) for each in type_)
    if pa.types.is_list(type_) and pa.types.is_list(column):
        return _is_held(type_.value_type, column.value_type)
    if pa.types.is_map(type_) and pa.types.is_map(column):
        same_keys: bool = type_.key_type == column.key_type
        return same_keys and _is_held(type_.item_type, column.item_type)
    return False

"""Members of a JSON object as values of declared types, each once and nothing rounded; a reason names the one at fault.

Of a member that is there twice a decoder keeps the last, and drops the other without a word; an object that has one is
refused here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["JsonFields", "MemberRefused", "Undeclared", "members_of"]

#: What becomes of members that no field declares.
Undeclared = Literal["keep", "ignore", "reject"]
_INT = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
_LONG = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
#: Seconds of the years 1 to 9999, which Python, pandas and ISO 8601 text all hold.
_SECONDS = Annotated[int, msgspec.Meta(ge=-62_135_596_800, le=253_402_300_799)]
_MILLIS = Annotated[int, msgspec.Meta(ge=-62_135_596_800_000, le=253_402_300_799_999)]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: More digits of a second than a microsecond has, unless they are zeros.
_FINER = re.compile(r"[.,]\d{6}\d*[1-9]")
_NULL = b"null"
#: Times that Arrow reads as msgspec does; Arrow knows a year 0, too.
_PLAIN_UTC = r"^(\d{3}[1-9]|\d{2}[1-9]0|\d[1-9]00|[1-9]000)-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?Z$"

#: Bytes of text from which on numpy is faster than Python.
_MANY_BYTES = 4096
_SPACES = np.frombuffer(b" \t\n\r", dtype=np.uint8)

_OBJECT = msgspec.json.Decoder(dict[str, msgspec.Raw])
_pairs = json.JSONDecoder(object_pairs_hook=list, parse_int=str, parse_float=str, parse_constant=str)


def members_of(text: bytes) -> dict[str, msgspec.Raw]:
    """The members of an object, in their order, with their values' own text.

    Args:
        text: JSON in UTF-8.

    Raises:
        ValueError: It is no object, is not UTF-8, has a member twice or is nested too deeply.
    """
    try:
        members = _OBJECT.decode(text)
        if not _has_no_more(len(members), text):
            names = [name for name, _ in _pairs.decode(text.decode())]
            if len(names) > len(members):
                twice = next(name for number, name in enumerate(names) if name in names[:number])
                raise ValueError(f"it has member {twice!r} twice")
    except msgspec.MsgspecError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    else:
        text.decode()  # msgspec does not look into texts that it hands on
        return members


def _has_no_more(members: int, text: bytes) -> bool:
    """Whether it can be seen without taking the object apart that it has no other members: by the colons after names.

    A name's colon follows a quote, or a space; what nested objects and texts have is counted with it.
    """
    if len(text) >= _MANY_BYTES:
        return _has_no_more_of_many(members, text)
    if text.count(b'":') != members:
        return False
    return not (b" :" in text or b"\t:" in text or b"\n:" in text or b"\r:" in text)


def _has_no_more_of_many(members: int, text: bytes) -> bool:
    """The same, at once: Python looks for two characters in some nanoseconds for each that begins like them."""
    characters = np.frombuffer(text, dtype=np.uint8)
    before = characters[np.flatnonzero(characters[1:] == ord(":"))]
    return int((before == ord('"')).sum()) == members and not np.isin(before, _SPACES).any()


class MemberRefused(ValueError):
    """A JSON text is not what the feed says of it."""


class JsonFields:
    """The members of JSON objects that a feed declares.

    Args:
        types: `datalake_assets.sources.field_types.FieldType` by the member's name; at least one.
        undeclared: What becomes of other members.
    """

    def __init__(self, types: Mapping[str, str], *, undeclared: Undeclared) -> None:
        self._fields = {name: _Field.of(name, text) for name, text in types.items()}
        self._undeclared = undeclared
        members = [(f"member_{number}", each.in_whole) for number, each in enumerate(self._fields.values())]
        names = {name: at_source for (name, _), at_source in zip(members, self._fields, strict=True)}
        whole = msgspec.defstruct("Whole", members, rename=names, forbid_unknown_fields=True, gc=False)
        self._whole = msgspec.json.Decoder(whole)
        self._members = [attrgetter(name) for name, _ in members]

    @property
    def columns(self) -> list[tuple[pa.DataType, bool]]:
        """Type of each member's column, and whether it can be null."""
        return [(each.arrow, each.nullable) for each in self._fields.values()]

    def values(self, text: bytes) -> tuple[Sequence[Any], str | None]:
        """The values of the declared members, and the others as JSON; None if there are none.

        Args:
            text: JSON in UTF-8.

        Raises:
            MemberRefused: It is no object, or a member is not what is declared; names it.
        """
        found = self._declared_alone(text)
        return (found, None) if found is not None else self._one_by_one(text)

    def arrays(self, texts: Sequence[bytes]) -> list[pa.Array] | None:
        """The declared members of many objects at once, a column for each; None if `values` has to look at each object.

        That is so unless each object has each declared member once and no other, and every value fits its column.

        Args:
            texts: JSON in UTF-8.
        """
        joined = b" ".join(texts)
        # an object that has them all has at least so many colons behind a quote: if the sum is right, each has no more
        if not _has_no_more(len(self._fields) * len(texts), joined):
            return None
        try:
            joined.decode()  # msgspec does not look into texts that it hands on
            # each by itself: `decode_lines` takes values where they begin, not lines, so that one text's end or second
            # object would stand for another text
            wholes = list(map(self._whole.decode, texts))
            members = zip(self._fields.values(), self._members, strict=True)
            return [each.array(list(map(member, wholes))) for each, member in members]
        except (msgspec.MsgspecError, ValueError, TypeError, ArithmeticError, RecursionError, pa.ArrowException):
            return None

    def _declared_alone(self, text: bytes) -> Sequence[Any] | None:
        """The values at once, of an object that has each declared member once and no other; None if it is another."""
        if not _has_no_more(len(self._fields), text):
            return None
        try:
            text.decode()  # msgspec does not look into texts that it hands on
            values = msgspec.structs.astuple(self._whole.decode(text))
            return [each.converted(value) for each, value in zip(self._fields.values(), values, strict=True)]
        except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError):
            return None

    def _one_by_one(self, text: bytes) -> tuple[Sequence[Any], str | None]:
        try:
            members = members_of(text)
        except ValueError as error:
            raise MemberRefused(f"it is not a JSON object: {error}") from error
        values = [each.value(members.pop(name, None)) for name, each in self._fields.items()]
        return values, self._others(members) if members else None

    def _others(self, members: Mapping[str, msgspec.Raw]) -> str | None:
        if self._undeclared == "ignore":
            return None
        if self._undeclared == "reject":
            raise MemberRefused(f"the feed declares no field {min(members)!r}")
        parts = (f"{msgspec.json.encode(name).decode()}:{_text(raw)}" for name, raw in members.items())
        return f"{{{','.join(parts)}}}"


@dataclass(frozen=True, slots=True)
class _Field:
    """A declared member.

    Attributes:
        name: Its name in bodies.
        arrow: Its column's type.
        nullable: Whether bodies may lack it, or have null.
        wire: What msgspec decodes.
        decoder: Decodes a value.
        convert: Makes of that what Arrow takes.
    """

    name: str
    arrow: pa.DataType
    nullable: bool
    wire: Any
    decoder: Any
    convert: Callable[[Any], Any] | None = None

    @classmethod
    def of(cls, name: str, text: str) -> _Field:
        """The field of a type that the model has checked."""
        kind, _, is_needed = text.partition(" ")
        if kind.startswith("decimal"):
            precision, scale = map(int, kind.removeprefix("decimal(").removesuffix(")").split(","))
            return cls(name, pa.decimal128(precision, scale), not is_needed, Decimal, _decoder(Decimal), _finite)
        arrow, wire, convert = _KINDS[kind]
        return cls(name, arrow, not is_needed, wire, _decoder(wire), convert)

    @property
    def in_whole(self) -> Any:
        """What msgspec decodes as part of an object."""
        return self.wire | None if self.nullable and self.wire is not msgspec.Raw else self.wire

    def converted(self, found: Any) -> Any:
        """What Arrow takes of a value that was decoded as part of an object.

        Raises:
            ValueError: It is none of this type.
        """
        if found is None:
            return None
        if self.wire is msgspec.Raw and bytes(found) == _NULL:
            if not self.nullable:
                raise MemberRefused(self.name)
            return None
        return found if self.convert is None else self.convert(found)

    def array(self, values: Sequence[Any]) -> pa.Array:
        """The column of values that were decoded as parts of objects.

        Raises:
            ValueError: One is none of this type, or has to be looked at by itself.
        """
        if self.convert is None:
            return pa.array(values, self.arrow)
        if self.convert is _utc:
            texts = pa.array(values, pa.string())
            if not pc.all(pc.match_substring_regex(texts, _PLAIN_UTC)).as_py():
                raise ValueError(self.name)
            return texts.cast(self.arrow)
        return pa.array(map(self.converted, values), self.arrow)

    def value(self, raw: msgspec.Raw | None) -> Any:
        """Its value in a body that has this text for it.

        Raises:
            ValueError: It is none of this type.
        """
        if raw is None or bytes(raw) == _NULL:
            if not self.nullable:
                raise MemberRefused(f"{self.name}: it has no value, and is declared 'not null'")
            return None
        try:
            found = self.decoder.decode(raw)
            return found if self.convert is None else self.convert(found)
        except (msgspec.MsgspecError, ValueError, ArithmeticError, RecursionError) as error:
            raise MemberRefused(f"{self.name}: {error}") from error


def _decoder(wire: Any) -> Any:
    return msgspec.json.Decoder(wire)


def _text(raw: msgspec.Raw) -> str:
    return bytes(raw).decode()


def _finite(value: Decimal) -> Decimal:
    if not value.is_finite():
        raise ValueError(f"{value} is no number")
    return value


def _moment(text: str) -> datetime:
    if _FINER.search(text):
        raise ValueError(f"{text!r} is finer than a microsecond")
    return msgspec.convert(text, datetime)


def _utc(text: str) -> datetime:
    """Times without a zone are UTC."""
    found = _moment(text)
    return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)


def _local(text: str) -> datetime:
    found = _moment(text)
    if found.tzinfo:
        raise ValueError(f"{text!r} has a time zone: declare it 'timestamptz'")
    return found


def _time(text: str) -> time:
    if _FINER.search(text):
        raise ValueError(f"{text!r} is finer than a microsecond")
    found = msgspec.convert(text, time)
    if found.tzinfo:
        raise ValueError(f"{text!r} has a time zone")
    return found


def _since(unit: timedelta) -> Callable[[int], datetime]:
    return lambda number: _EPOCH + number * unit


_UTC = pa.timestamp("us", "UTC")
#: By type: the column, what msgspec decodes, and what is made of that.
_KINDS: Mapping[str, tuple[pa.DataType, Any, Callable[[Any], Any] | None]] = {
    "boolean": (pa.bool_(), bool, None),
    "int": (pa.int32(), _INT, None),
    "long": (pa.int64(), _LONG, None),
    "double": (pa.float64(), float, None),
    "string": (pa.string(), str, None),
    "binary": (pa.binary(), bytes, None),
    "date": (pa.date32(), date, None),
    "time": (pa.time64("us"), str, _time),
    "timestamp": (pa.timestamp("us"), str, _local),
    "timestamptz": (_UTC, str, _utc),
    "epoch_s": (_UTC, _SECONDS, _since(timedelta(seconds=1))),
    "epoch_ms": (_UTC, _MILLIS, _since(timedelta(milliseconds=1))),
    "json": (pa.string(), msgspec.Raw, _text),
}

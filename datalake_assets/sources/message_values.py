"""What messages hold that no registry describes: JSON objects with declared members, texts or bytes.

Values in quarantine are kept in JSON, where what is no text in UTF-8 stands in base64.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import pyarrow as pa

from datalake_assets.sources.field_types import OTHER_FIELDS, VALUE
from datalake_assets.sources.json_fields import JsonFields, MemberRefused, Undeclared

__all__ = ["Refused", "ValueFormat", "kept_bytes", "plain_format", "restored_bytes", "text_of"]


class Refused(ValueError):
    """A message is not what its feed says of it."""


class ValueFormat(Protocol):
    """What values are.

    Attributes:
        columns: Columns by their names at the source.
    """

    @property
    def columns(self) -> Sequence[pa.Field]: ...  # noqa: D102  see above

    def arrays(self, values: Sequence[bytes]) -> list[pa.Array] | None:
        """The columns of many values at once; None where each has to be looked at."""

    def values(self, value: bytes) -> Sequence[Any]:
        """A value's columns.

        Raises:
            Refused: It is none of this format.
        """


class _Whole:
    """Values that are landed as they are."""

    def __init__(self, *, is_text: bool) -> None:
        self.columns = (pa.field(VALUE, pa.string() if is_text else pa.binary()),)
        self._is_text = is_text

    def arrays(self, values: Sequence[bytes]) -> list[pa.Array] | None:
        whole = pa.array(values, pa.binary())
        return [whole.cast(pa.string())] if self._is_text else [whole]

    def values(self, value: bytes) -> Sequence[Any]:
        return (text_of(value, "the value") if self._is_text else value,)


class _Json:
    """JSON objects with declared members."""

    def __init__(self, fields: Mapping[str, str], undeclared: Undeclared) -> None:
        self._fields = JsonFields(fields, undeclared=undeclared)
        types = (type_ for type_, _ in self._fields.columns)
        self.columns = tuple(pa.field(name, type_) for name, type_ in zip(fields, types, strict=True))
        self._keeps = undeclared == "keep"
        if self._keeps:
            self.columns = (*self.columns, pa.field(OTHER_FIELDS, pa.string()))

    def arrays(self, values: Sequence[bytes]) -> list[pa.Array] | None:
        found = self._fields.arrays(values)
        return [*found, pa.nulls(len(values), pa.string())] if found and self._keeps else found

    def values(self, value: bytes) -> Sequence[Any]:
        try:
            found, other = self._fields.values(value)
        except MemberRefused as error:
            raise Refused(str(error)) from error
        return (*found, other) if self._keeps else found


def plain_format(
    kind: Literal["json", "text", "binary"], fields: Mapping[str, str], undeclared: Undeclared
) -> ValueFormat:
    """A format that needs no registry.

    Args:
        kind: Which one.
        fields: Of ``json``: types of the members, by their names.
        undeclared: What becomes of other members.
    """
    return _Json(fields, undeclared) if kind == "json" else _Whole(is_text=kind == "text")


def text_of(value: bytes, what: str) -> str:
    """A text.

    Raises:
        Refused: It is none in UTF-8; says ``what`` it was to be.
    """
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Refused(f"{what} is no text in UTF-8: {error}") from error


def kept_bytes(name: str, value: bytes | None) -> dict[str, str | None]:
    """A value as a member of a JSON object: under its name as a text, or with ``_base64`` behind it."""
    if value is None:
        return {name: None}
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}


def restored_bytes(name: str, document: Mapping[str, Any]) -> bytes | None:
    """The inverse of `kept_bytes`."""
    if f"{name}_base64" in document:
        return base64.b64decode(document[f"{name}_base64"])
    text = document[name]
    return None if text is None else text.encode()

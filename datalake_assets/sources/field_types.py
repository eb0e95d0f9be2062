"""Types that a feed declares for the members of JSON values, in messages of queues and of topics alike.

Loaded wherever feeds are read, so nothing heavy is imported.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

__all__ = ["OTHER_FIELDS", "TYPES", "VALUE", "FieldType"]

#: The one column of values that are not taken apart; what a JSON value has that no field declares.
VALUE, OTHER_FIELDS = "value", "other_fields"
#: Types of fields, as Iceberg spells them; ``json`` is any value as its text, the ``epoch_…`` are numbers since 1970.
TYPES = (
    *("boolean", "int", "long", "double", "string", "binary", "date", "time"),
    *("timestamp", "timestamptz", "epoch_s", "epoch_ms", "json"),
)
_DECIMAL = re.compile(r"decimal\(([1-9][0-9]?),([0-9]{1,2})\)")
_NOT_NULL = " not null"
#: Digits of the widest decimal (Iceberg specification, "Primitive Types").
_DIGITS = 38


def _known_type(text: str) -> str:
    words = " ".join(text.lower().split())
    kind = words.removesuffix(_NOT_NULL).replace(" ", "")
    decimal = _DECIMAL.fullmatch(kind)
    fits = decimal is not None and int(decimal[2]) <= int(decimal[1]) <= _DIGITS
    if not fits and kind not in TYPES:
        msg = (
            f"there is no type {text!r}; use {', '.join(TYPES)} or decimal(precision,scale), each also with 'not null'"
        )
        raise ValueError(msg)
    return kind + (_NOT_NULL if words.endswith(_NOT_NULL) else "")


#: A field's type: one of `TYPES`, or ``decimal(precision,scale)``; with ``not null`` behind it, every body needs one.
FieldType = Annotated[str, AfterValidator(_known_type)]

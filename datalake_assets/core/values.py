"""What values are made of: structs that `dataclasses` takes for its own.

Python writes and compiles six functions for each frozen dataclass, half a millisecond: of the hundred that a compaction
loads, a sixth of all that it takes to start. A struct of msgspec's has them from its base, and is made in a fiftieth of
that. `dataclasses.replace`, `asdict` and `fields` take it as well; what describes its fields to them is made when they
first ask. Why so: ADR 039.
"""

from __future__ import annotations

from dataclasses import Field, make_dataclass
from functools import cache
from typing import Any

import msgspec

__all__ = ["Value"]


class _Described:
    """The fields of a struct as `dataclasses` looks for them."""

    def __get__(self, value: Value | None, kind: type[Value]) -> dict[str, Field[Any]]:
        return _described(kind)


@cache
def _described(kind: type[Value]) -> dict[str, Field[Any]]:
    made: Any = make_dataclass(kind.__name__, [(name, Any) for name in kind.__struct_fields__])
    return dict(made.__dataclass_fields__)


class Value(msgspec.Struct, frozen=True):
    """A frozen value with slots, equal to others of its class that have equal fields.

    Each class says ``frozen=True`` again, for the type checker. What shall not be shown, or not be compared, is for a
    dataclass: structs show and compare all of their fields.
    """

    __dataclass_fields__ = _Described()

"""The columns that a partition's path gives its rows: their types, and what is true of every row below a path.

Streams and tables write their paths themselves, so their types are known: ``year``, ``month``, … are int32,
``version`` is text. Of an adopted folder they are inferred over all its paths, as Arrow and Hive do it: integers where
each value is one, else text; ``%3A`` and the like are decoded; ``__HIVE_DEFAULT_PARTITION__``, and a folder that does
not name the column, mean null.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import reduce
from operator import and_
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds

from datalake_assets.core.partition_paths import hive_pairs

__all__ = ["PartitionColumns"]

#: How Hive writes a null into a path.
NULL = "__HIVE_DEFAULT_PARTITION__"
_INTEGER = re.compile(r"-?\d{1,18}")
_INT32 = range(-(2**31), 2**31)


class PartitionColumns:
    """The partition columns of a feed.

    Args:
        schema: The columns of its files.
        paths: Of all its partitions.
        inferred: Whether types are inferred; else they are those of streams and tables.
    """

    def __init__(self, schema: pa.Schema, paths: Sequence[str], *, inferred: bool) -> None:
        self._data = schema
        values: dict[str, set[str]] = {}
        for path in paths if inferred else paths[:1]:
            for name, value in hive_pairs(path):
                values.setdefault(name, set()).add(value)
        if inferred:
            self._types = {name: _inferred(texts) for name, texts in values.items()}
        else:
            self._types = {name: pa.string() if name == "version" else pa.int32() for name in values}
        self._inferred = inferred

    @property
    def schema(self) -> pa.Schema:
        """The columns of the files, then those of the paths; a name that both have is the path's."""
        data = [field for field in self._data if field.name not in self._types]
        named = [pa.field(name, kind) for name, kind in self._types.items()]
        return pa.schema([*data, *named], metadata=self._data.metadata)

    def expression(self, path: str) -> ds.Expression:
        """``year == 2025 and month == 1 and …``: what is true of every row below the path."""
        given = dict(hive_pairs(path))
        terms = []
        for name, kind in self._types.items():
            value = self._value(given[name], kind) if name in given else None
            if value is not None:
                terms.append(ds.field(name) == pa.scalar(value, kind))
            elif name in given or name not in self._data.names:
                terms.append(ds.field(name).is_null())
        return reduce(and_, terms) if terms else ds.scalar(True)

    def _value(self, text: str, kind: pa.DataType) -> int | str | None:
        if self._inferred and text == NULL:
            return None
        plain = unquote(text) if self._inferred else text
        return plain if pa.types.is_string(kind) else int(plain)


def _inferred(texts: set[str]) -> pa.DataType:
    known = {unquote(text) for text in texts if text != NULL}
    if not known or not all(_INTEGER.fullmatch(text) for text in known):
        return pa.string()
    return pa.int32() if all(int(text) in _INT32 for text in known) else pa.int64()

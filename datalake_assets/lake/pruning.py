"""What a condition leaves unread: partitions, by the columns that their paths give, and row groups, by their bounds.

Streams and tables write their paths themselves, so that the types of these columns are known: ``year``, ``month``, …
are int32, ``version`` is text. Of an adopted folder they are inferred over all its paths, as Arrow and Hive do it:
integers where each value is one, else text; ``%3A`` and the like are decoded; ``__HIVE_DEFAULT_PARTITION__`` means
null. Names that differ only in case are one column, as SQL takes them: that of the files, or else of the first path.

Bounds of floats say nothing of rows that are not a number, and Arrow takes them for true of all rows: by ``x <= 2`` it
finds that ``not x < 5`` is true of no row. Where comparisons are only joined by "and" and "or", no row is lost.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import reduce
from operator import and_
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs

from datalake_assets.core.arrow_arrays import has_floats
from datalake_assets.core.partitions import hive_pairs

__all__ = ["PartitionColumns", "matching_paths", "may_prune"]

# what Arrow writes of a condition; a text within that looks like it does no harm
_CALLED = re.compile(r"(\w+)\(")
_PLAIN = frozenset({"is_in", "is_nan", "is_null", "is_valid"})
#: A comparison of what is true or false.
_OF_TRUTHS = re.compile(r"\) (?:==|!=|<=?|>=?) |(?:==|!=|<=?|>=?) (?:\(|true|false)")
#: How Hive writes a null into a path.
NULL = "__HIVE_DEFAULT_PARTITION__"
_INTEGER = re.compile(r"-?[0-9]{1,18}")  # Arrow reads no other digits
_INT32 = range(-(2**31), 2**31)


class PartitionColumns:
    """The partition columns of a feed.

    Args:
        schema: The columns of its files.
        paths: Of all its partitions.
        inferred: Whether types are inferred; else they are those of streams and tables.
    """

    def __init__(self, schema: pa.Schema, paths: Sequence[str], *, inferred: bool) -> None:
        self._data, self._inferred, self._known = schema, inferred, {*schema.names}
        self._named = {name.lower(): name for name in reversed(schema.names)}
        values: dict[str, set[str]] = {}
        for path in paths if inferred else paths[:1]:
            for name, value in self._given(path).items():
                values.setdefault(name, set()).add(value)
        if inferred:
            own = {field.name: field.type for field in schema}
            self._types = {name: _common(own.get(name), texts) for name, texts in values.items()}
        else:
            self._types = {name: pa.string() if name == "version" else pa.int32() for name in values}

    def _given(self, path: str) -> dict[str, str]:
        """What a path states, by the columns' names; of a name that stands there twice, the last."""
        if not self._inferred:
            return dict(hive_pairs(path))
        return {
            name if name in self._known else self._named.setdefault(name.lower(), name): value
            for name, value in hive_pairs(path)
        }

    @property
    def schema(self) -> pa.Schema:
        """The columns of the files, then those of the paths, among them what both have."""
        data = [field for field in self._data if field.name not in self._types]
        named = [pa.field(name, kind) for name, kind in self._types.items()]
        return pa.schema([*data, *named], metadata=self._data.metadata)

    def expression(self, path: str) -> ds.Expression:
        """``year == 2025 and month == 1 and …``: what is true of every row below the path."""
        given = self._given(path)
        terms = []
        for name, kind in self._types.items():
            value = self._value(given[name], kind) if name in given else None
            if value is not None:
                terms.append(ds.field(name) == value)
            elif name in given or name not in self._data.names:
                terms.append(ds.field(name).is_null())
        return reduce(and_, terms) if terms else ds.scalar(True)

    def _value(self, text: str, kind: pa.DataType) -> pa.Scalar | None:
        """A path's value as the column's type; None for a null, and for what cannot be read as that type."""
        if not self._inferred:
            return pa.scalar(text if pa.types.is_string(kind) else int(text), kind)
        return None if text == NULL else _read_as(unquote(text), kind)


def _common(own: pa.DataType | None, texts: set[str]) -> pa.DataType:
    """The type of a column that paths give, and, where ``own`` is not None, files of other paths have, too.

    It is the files' own type if each path's value can be read as one; else text, if the files' values can be written as
    text; else again the files' own.
    """
    inferred = _inferred(texts)
    if own is None or pa.types.is_null(own):
        return inferred
    if pa.types.is_dictionary(own):
        own = own.value_type
    if pa.types.is_integer(own) and pa.types.is_integer(inferred):
        own = max(own, inferred, key=lambda kind: kind.bit_width) if pa.types.is_signed_integer(own) else own
    known = [unquote(text) for text in texts if text != NULL]
    if all(_read_as(text, own) is not None for text in known):
        return own
    try:
        pa.array([], own).cast(pa.string())
    except (pa.ArrowException, NotImplementedError):
        return own
    return pa.string()


def _read_as(text: str, kind: pa.DataType) -> pa.Scalar | None:
    try:
        return pa.array([text], pa.string()).cast(kind)[0]
    except (pa.ArrowException, NotImplementedError):
        return None


def _inferred(texts: set[str]) -> pa.DataType:
    known = {unquote(text) for text in texts if text != NULL}
    if not known or not all(_INTEGER.fullmatch(text) for text in known):
        return pa.string()
    return pa.int32() if all(int(text) in _INT32 for text in known) else pa.int64()


def matching_paths(paths: Sequence[str], columns: PartitionColumns, where: ds.Expression | None) -> set[str]:
    """The partitions that can match ``where``, judged by their paths alone."""
    if where is None or not paths:
        return set(paths)
    dataset = ds.FileSystemDataset.from_paths(
        [f"{number}" for number in range(len(paths))],
        schema=columns.schema,
        format=ds.ParquetFileFormat(),
        filesystem=pafs.LocalFileSystem(),
        partitions=[columns.expression(path) for path in paths],
    )
    return {paths[int(fragment.path)] for fragment in dataset.get_fragments(filter=where)}


def may_prune(where: ds.Expression, schema: pa.Schema) -> bool:
    """Whether no row is lost if Arrow leaves out row groups by what they state of their values.

    Args:
        where: The condition.
        schema: Columns that it is about.
    """
    text = str(where)
    is_plain = _PLAIN.issuperset(_CALLED.findall(text)) and not _OF_TRUTHS.search(text)
    return is_plain or not any(has_floats(each.type) and each.name in text for each in schema)

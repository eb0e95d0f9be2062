"""Which row of a key stands, in a feed that says ``write: merge``: the newest change of the key, unless it deletes.

The rules know rows and numbers, and no source: wherever changes come from, they are rows with a source partition and an
offset. What is promised of them, ADR 026 says:

- Without an order column, the change with the greater offset of its source partition is the newer one. All changes of a
  key are to come from one source partition, as they do where the topic is partitioned by its key.
- With one, the change with the greater value is, wherever it comes from and whenever; of equal values, the later one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from datalake_assets.core.position import Ints, Mask
from datalake_assets.core.schema import Misfit
from datalake_assets.errors import InvalidFeed
from datalake_assets.feed import Feed

__all__ = ["MergeRule", "key_texts", "merged_columns", "newest_changes", "row_of_change", "unwrapped_schema"]

#: What an envelope of Debezium says of the row before and after a change, and which of its operations deletes.
ENVELOPE = ("before", "after", "op")
_DELETES = "d"


@dataclass(frozen=True, slots=True)
class MergeRule:
    """What a feed says of its changes.

    Attributes:
        key: The columns whose values together name a row.
        order_by: The column whose greatest value is the newest; None: the offset decides.
        delete_column: The column that marks deletions.
        delete_values: What it says of them.
        apart: Columns that a tombstone has besides its key: a record's own timestamp.
    """

    key: tuple[str, ...]
    order_by: str | None
    delete_column: str | None
    delete_values: tuple[str, ...]
    apart: frozenset[str]

    @classmethod
    def of(cls, feed: Feed) -> MergeRule:
        """The rule of a feed that is merged."""
        told, own = feed.merge, feed.exported_from.time_column
        column, values = told.delete_column, told.delete_values
        if told.envelope == "debezium":
            column, values = "op", (_DELETES,)
        return cls(feed.key, told.order_by, column, values, frozenset({own} if own else ()))

    def problem(self, schema: pa.Schema) -> str:
        """Why rows of these columns cannot be merged; empty if they can."""
        named = {"key": self.key, "order_by": (self.order_by,), "delete_column": (self.delete_column,)}
        for said, columns in named.items():
            lost = [name for name in columns if name is not None and name not in schema.names]
            if lost:
                return f"{said}: there is no column {lost[0]!r}; there are {', '.join(schema.names)}"
        for name in self.key:
            if not _names_rows(schema.field(name).type):
                return f"key: column {name!r} is of type {schema.field(name).type}, whose values name no row"
        order = None if self.order_by is None else schema.field(self.order_by).type
        if order is not None and not _has_order(order):
            return f"order_by: column {self.order_by!r} is of type {order}, whose values have no order"
        if self.delete_column is not None and not _is_text(schema.field(self.delete_column).type):
            return f"delete_column: column {self.delete_column!r} is neither text, nor a number, nor true or false"
        return ""

    def deletions(self, rows: pa.RecordBatch, sent: Collection[str]) -> Mask:
        """Which changes delete their row: those that say so, and tombstones, which have nothing but their key.

        Args:
            rows: The changes, in the lake's columns.
            sent: The columns that the source sends; that others are null says nothing.
        """
        deleted = np.zeros(rows.num_rows, dtype=np.bool_)
        if self.delete_column is not None:
            said = rows.column(self.delete_column).cast(pa.string())
            deleted |= np.asarray(pc.is_in(said, pa.array(self.delete_values, pa.string())))
        others = [name for name in rows.schema.names if name in sent and name not in {*self.key, *self.apart}]
        if others:
            empty = np.ones(rows.num_rows, dtype=np.bool_)
            for name in others:
                empty &= np.asarray(rows.column(name).is_null())
            deleted |= empty
        return deleted

    def refused(self, rows: pa.RecordBatch) -> tuple[Misfit, ...]:
        """Changes that cannot be merged: without a key, or without a value to order them by."""
        named = [("key", name) for name in self.key] + [("order", name) for name in [self.order_by] if name is not None]
        return tuple(
            Misfit(name, f"{what} column {name} is null", np.asarray(rows.column(name).is_null()), is_required=True)
            for what, name in named
            if rows.column(name).null_count
        )


def merged_columns(feed: Feed, schema: pa.Schema) -> pa.Schema:
    """The columns of a feed's rows, of those that its source sends.

    Raises:
        InvalidFeed: The feed names columns that are not there, or cannot serve; says which.
    """
    if feed.write != "merge":
        return schema
    try:
        rows = unwrapped_schema(schema) if feed.merge.envelope == "debezium" else schema
    except ValueError as error:
        raise InvalidFeed(feed.name, str(error)) from error
    problem = MergeRule.of(feed).problem(rows)
    if problem:
        raise InvalidFeed(feed.name, problem)
    return rows


def _names_rows(kind: pa.DataType) -> bool:
    """Floats have NaN, and values that look equal; what is nested has no one text."""
    checks = (pt.is_decimal, pt.is_timestamp, pt.is_date, pt.is_time, pt.is_binary, pt.is_large_binary)
    return _is_text(kind) or pt.is_fixed_size_binary(kind) or any(is_kind(kind) for is_kind in checks)


def _is_text(kind: pa.DataType) -> bool:
    return any(is_kind(kind) for is_kind in (pt.is_string, pt.is_large_string, pt.is_integer, pt.is_boolean))


def _has_order(kind: pa.DataType) -> bool:
    checks = (pt.is_integer, pt.is_decimal, pt.is_timestamp, pt.is_date, pt.is_time, pt.is_string, pt.is_large_string)
    return any(is_kind(kind) for is_kind in checks)


def key_texts(columns: Sequence[pa.Array]) -> pa.Array:
    """Each row's key as bytes: equal if and only if all its values are.

    Args:
        columns: The key's columns, in its order, without nulls; a null makes the row's text null.
    """
    texts = [_text(column) for column in columns]
    if len(texts) == 1:
        return texts[0]
    separator = pa.scalar(b"", pa.large_binary())
    framed = [part for text in texts for part in (_length(text), text)]
    return pc.binary_join_element_wise(*framed, separator)


def _length(text: pa.Array) -> pa.Array:
    """How long each part is, so that no two keys run together to the same bytes."""
    return pc.binary_join_element_wise(
        pc.binary_length(text).cast(pa.string()).cast(pa.large_binary()),
        pa.scalar(b":", pa.large_binary()),
        pa.scalar(b"", pa.large_binary()),
    )


def _text(column: pa.Array) -> pa.Array:
    if pt.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if pt.is_temporal(kind):
        column = column.cast(pa.int32() if kind.bit_width == 32 else pa.int64())  # noqa: PLR2004  bits of a number
    if pt.is_fixed_size_binary(kind):
        column = column.cast(pa.binary())
    elif not (pt.is_binary(kind) or pt.is_large_binary(kind)):
        column = column.cast(pa.large_string())
    return column.cast(pa.large_binary())


def newest_changes(keys: pa.Array, order: pa.Array | None, partitions: Ints, offsets: Ints) -> Ints:
    """The row of the newest change of each key, by the rules above.

    Args:
        keys: As `key_texts` gives them, without nulls.
        order: The order column, without nulls; None if the offset decides.
        partitions: The source partition of each change; of several with one key, which nothing orders, the highest
            counts, so that a repeated read comes to the same.
        offsets: The offset of each change.
    """
    codes = np.asarray(keys.dictionary_encode().indices)
    columns: list[npt.NDArray[np.generic]] = [offsets, partitions]
    if order is not None:
        columns.append(np.asarray(pc.rank(order, sort_keys="ascending", tiebreaker="dense")))
    ascending = np.lexsort(columns)
    newest = np.zeros(int(codes.max()) + 1 if len(codes) else 0, dtype=np.int64)
    newest[codes[ascending]] = ascending  # of several values for one place, the last stays
    return newest


def unwrapped_schema(schema: pa.Schema) -> pa.Schema:
    """The columns of rows that come in envelopes: those of ``after``, then ``op`` and what else stands beside it.

    Raises:
        ValueError: They are no envelopes, or a column would be there twice; says which.
    """
    lost = [name for name in ENVELOPE if name not in schema.names]
    if lost:
        raise ValueError(f"envelope: there is no column {lost[0]!r}; there are {', '.join(schema.names)}")
    before, after = schema.field("before").type, schema.field("after").type
    if not (pt.is_struct(before) and pt.is_struct(after)) or {each.name: each.type for each in before} != {
        each.name: each.type for each in after
    }:
        raise ValueError("envelope: before and after are not rows of the same columns")
    row = [pa.field(each.name.lower(), each.type) for each in after]
    beside = [field for field in schema if field.name not in {"before", "after"}]
    fields = [*row, *beside]
    names = [field.name for field in fields]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ValueError(f"envelope: column {twice[0]!r} is there twice, in the row and beside it")
    return pa.schema(fields, metadata=schema.metadata)


def row_of_change(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The rows of envelopes: ``after``, and of a deletion ``before``, which has the key.

    Args:
        batch: Envelopes.
        schema: What `unwrapped_schema` made of their schema.
    """
    before, after = batch.column("before"), batch.column("after")
    deleted = pc.fill_null(pc.equal(batch.column("op").cast(pa.string()), _DELETES), fill_value=False)
    columns: Mapping[str, pa.Array] = {  # by name: the two may have their columns in another order
        each.name.lower(): pc.if_else(
            deleted, pc.struct_field(before, [each.name]), pc.struct_field(after, [each.name])
        )
        for each in after.type
    }
    return pa.RecordBatch.from_arrays(
        [columns[field.name] if field.name in columns else batch.column(field.name) for field in schema], schema=schema
    )

"""What all row groups of an output must have in common, and which inputs fit together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.errors import UnreadableFile
from datalake_assets.parquet.footer import Footer, parse_footer
from datalake_assets.parquet.inputs import InputFile, OpenInput
from datalake_assets.parquet.unify import Incompatible, unify_schemas
from datalake_assets.parquet.writer import ParquetSettings, open_writer

__all__ = ["AnotherShape", "Shape", "inspect", "lost_type", "shape_of", "template"]

#: Logical types that Arrow writes as it read them; others would be lost when encoded again.
_KEPT = frozenset(
    "NONE STRING MAP LIST DECIMAL DATE TIME TIMESTAMP INT UNKNOWN NULL JSON UUID FLOAT16".split()  # noqa: SIM905  short
)
#: What the same is called in Arrow's rendering of a schema, where it stands at a group, or has no logical type at all.
_LOST = re.compile(r"\((VARIANT|GEOMETRY|GEOGRAPHY|INTERVAL)\b|Time\(isAdjustedToUTC=true", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Shape:
    """What row groups of one output share.

    Attributes:
        schema: Their Arrow schema; its metadata goes into the footer.
        bloom_columns: Columns that get bloom filters when they are encoded again.
        ours: Copied row groups must have the Parquet schema that Arrow writes for ``schema``; otherwise the first
            copied one's will do.
    """

    schema: pa.Schema
    bloom_columns: frozenset[str] = frozenset()
    ours: bool = False

    def fits(self, other: Shape) -> bool:
        """Whether rows of that shape need neither cast nor metadata of their own."""
        return other.bloom_columns <= self.bloom_columns and bool(
            self.schema.remove_metadata().equals(other.schema.remove_metadata(), check_metadata=True)
        )


class AnotherShape(Exception):
    """An input has another shape than the first: look at all before going on."""


def shape_of(source: OpenInput, *, copied: bool) -> Shape:
    """The shape of one input; of bloom filters that are ``copied`` in any case nobody needs to know."""
    return Shape(source.schema, frozenset() if copied else source.bloom_columns())


def lost_type(source: OpenInput) -> str | None:
    """What encoding it again would lose, for a person; None if nothing."""
    schema = source.parquet.schema
    for column in map(schema.column, range(len(schema))):
        if column.physical_type == "INT96":  # Arrow's nanoseconds end in 2262, Spark's year 9999 does not fit
            return f"column {column.path!r} has 96-bit timestamps, which encoding it again could change"
        if column.logical_type.type not in _KEPT:
            return f"column {column.path!r} is {column.logical_type.type}, which encoding it again would lose"
    found = _LOST.search(str(schema))
    return f"a column is {found.group(1) or 'TIME in UTC'}, which encoding it again would lose" if found else None


@dataclass(slots=True)
class _Class:
    """Inputs that fit together."""

    shape: Shape
    names: list[str] = field(default_factory=list)


def inspect(files: Sequence[InputFile], *, exact: bool) -> tuple[Shape | None, dict[str, str]]:
    """Looks at all inputs, oldest first.

    Args:
        files: The inputs.
        exact: Only files of one and the same shape fit together: none will be encoded again.

    Returns:
        The shape of the most files that fit together (None: none can be read), and the others with the reason.
    """
    classes: list[_Class] = []
    rejected: dict[str, str] = {}
    for file in files:
        try:
            source = OpenInput(file)
            try:
                shape = shape_of(source, copied=exact)
            finally:
                source.close()
        except UnreadableFile as error:
            rejected[file.name] = error.reason
            continue
        _place(classes, shape, file.name, exact=exact)
    if not classes:
        return None, rejected
    best = max(classes, key=lambda each: len(each.names))
    for other in classes:
        if other is not best:
            for name in other.names:
                rejected[name] = f"does not fit the other {len(best.names)} files: {_why(best.shape, other.shape)}"
    return replace(best.shape, ours=not exact), rejected


def _place(classes: list[_Class], shape: Shape, name: str, *, exact: bool) -> None:
    for each in classes:
        if exact and not each.shape.fits(shape):
            continue
        try:
            schema = unify_schemas([each.shape.schema, shape.schema])
        except Incompatible:
            continue
        each.shape = replace(each.shape, schema=schema, bloom_columns=each.shape.bloom_columns | shape.bloom_columns)
        each.names.append(name)
        return
    classes.append(_Class(shape, [name]))


def _why(best: Shape, other: Shape) -> str:
    try:
        unify_schemas([best.schema, other.schema])
    except Incompatible as error:
        return str(error)
    return "its schema is another, and the kernel 'concat' copies row groups only"


def template(shape: Shape, settings: ParquetSettings) -> Footer:
    """The footer that Arrow writes for a shape."""
    sink = pa.BufferOutputStream()
    writer: pq.ParquetWriter = open_writer(sink, shape.schema, settings, ([], {}))
    writer.close()
    view = memoryview(sink.getvalue())
    return parse_footer(lambda offset, length: view[offset : offset + length], len(view), where="template")

"""What all row groups of an output must have in common, and which inputs fit together."""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class Shape:
    """What row groups of one output share.

    Attributes:
        schema: Their Arrow schema; its metadata goes into the footer.
        int96: Timestamps are Parquet's old 96-bit ones.
        bloom_columns: Columns that have bloom filters.
        ours: Copied row groups must have the Parquet schema that Arrow writes for ``schema``; otherwise the first
            copied one's will do.
    """

    schema: pa.Schema
    int96: bool = False
    bloom_columns: frozenset[str] = frozenset()
    ours: bool = False

    def fits(self, other: Shape) -> bool:
        """Whether rows of that shape need neither cast nor metadata of their own."""
        return (
            self.int96 == other.int96
            and other.bloom_columns <= self.bloom_columns
            and self.schema.remove_metadata().equals(other.schema.remove_metadata(), check_metadata=True)
        )


class AnotherShape(Exception):
    """An input has another shape than the first: look at all before going on."""


def shape_of(source: OpenInput) -> Shape:
    """The shape of one input.

    Raises:
        UnreadableFile: Its types are not all ones that can be encoded again.
    """
    return Shape(source.schema, source.has_int96, source.bloom_columns())


def lost_type(source: OpenInput) -> str | None:
    """What encoding it again would lose, for a person; None if nothing."""
    for index in range(len(source.parquet.schema)):
        column = source.parquet.schema.column(index)
        kind = column.logical_type.type
        if kind not in _KEPT:
            return f"column {column.path!r} is {kind}, which encoding it again would lose"
    return None


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
                shape = shape_of(source)
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
        if each.shape.int96 != shape.int96 or (exact and not each.shape.fits(shape)):
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
    if best.int96 != other.int96:
        return "96-bit timestamps in some files and 64-bit ones in others"
    return "its schema is another, and the kernel 'concat' copies row groups only"


def template(shape: Shape, settings: ParquetSettings) -> Footer:
    """The footer that Arrow writes for a shape."""
    sink = pa.BufferOutputStream()
    options = {"use_deprecated_int96_timestamps": True} if shape.int96 else {}
    writer: pq.ParquetWriter = open_writer(sink, shape.schema, settings, ([], {}), **options)
    writer.close()
    view = memoryview(sink.getvalue())
    return parse_footer(lambda offset, length: view[offset : offset + length], len(view), where="template")

"""What downstream assets take: the committed rows of a feed, in the type that a parameter is annotated with."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args, get_origin

import pyarrow as pa

from datalake_assets.config import AssetSource, Feed
from datalake_assets.core.schema import RESERVED_NAMES
from datalake_assets.errors import ConfigError
from datalake_assets.lake.base import LakeTable

__all__ = ["Selection", "read_as"]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows and columns are wanted.

    Attributes:
        partitions: Partition keys; None for all, and of a table for the current version.
        columns: Column names; None for all. Of an asset's feed these are the columns that it returned, without those
            that its partitions' folders give (``year``, ``month``, …).
        tell: Told in one line what a person should know.
    """

    partitions: Sequence[str] | None = None
    columns: Sequence[str] | None = None
    tell: Callable[[str], None] | None = None


def read_as(wanted: Any, table: LakeTable, selection: Selection) -> Any:
    """Reads a feed's committed rows as the wanted type; partitions without data are left out, and told of.

    Args:
        wanted: ``pyarrow.Table``, ``pyarrow.RecordBatchReader``, ``pandas.DataFrame``, ``polars.DataFrame``, or a
            ``dict`` of one of these by partition key.
        table: The feed.
        selection: What is wanted of it.

    Raises:
        ConfigError: The type is none of these.
    """
    if get_origin(wanted) is dict and selection.partitions is None:
        raise ConfigError(f"annotate the input with the type of a frame, not {wanted}: it has no partitions")
    convert = _converter(get_args(wanted)[-1] if get_origin(wanted) is dict else wanted)
    if get_origin(wanted) is dict:
        keys = _with_data(table, selection) or ()
        return {key: convert(_reader(table, [key], selection.columns)) for key in keys}
    return convert(_reader(table, _with_data(table, selection), selection.columns))


def _converter(wanted: Any) -> Callable[[pa.RecordBatchReader], Any]:
    if wanted is pa.RecordBatchReader:
        return lambda reader: reader
    if wanted is pa.Table:
        return lambda reader: reader.read_all()
    library, name = getattr(wanted, "__module__", "").partition(".")[0], getattr(wanted, "__name__", "")
    if (library, name) == ("pandas", "DataFrame"):
        return lambda reader: reader.read_pandas()
    if (library, name) == ("polars", "DataFrame"):
        return functools.partial(wanted)  # takes streams of Arrow
    msg = (
        "annotate the input with pyarrow.Table, pyarrow.RecordBatchReader, pandas.DataFrame or polars.DataFrame, or a"
        f" dict of one of them by partition key, not {wanted}"
    )
    raise ConfigError(msg)


def _with_data(table: LakeTable, selection: Selection) -> list[str] | None:
    """The partitions to read; None if none were named."""
    if selection.partitions is None:
        return None
    partitions, known = selection.partitions, set(table.partitions())
    missing = [key for key in partitions if key not in known]
    if missing and selection.tell is not None:
        named = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")  # noqa: PLR2004  enough for a line
        selection.tell(f"{table.feed.path} has no data in {len(missing):,} of {len(partitions):,} partitions: {named}")
    return [key for key in partitions if key in known]


def _reader(table: LakeTable, partitions: Sequence[str] | None, columns: Sequence[str] | None) -> pa.RecordBatchReader:
    reader = table.scan(columns=columns, partitions=partitions)
    return reader if columns is not None else _own_columns(table.feed, reader)


def _own_columns(feed: Feed, reader: pa.RecordBatchReader) -> pa.RecordBatchReader:
    """Without what partitions add: an asset gets back what it returned, and may return it again."""
    names = [name for name in reader.schema.names if name not in RESERVED_NAMES]
    if not isinstance(feed.source, AssetSource) or names == reader.schema.names:
        return reader
    schema = pa.schema([reader.schema.field(name) for name in names])

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in reader:
            yield batch.select(names)

    return pa.RecordBatchReader.from_batches(schema, batches())

"""What a Parquet file of an adopted folder says of itself, from its last bytes alone."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as pt

from datalake_assets.core.files import DataFile
from datalake_assets.core.schema import column_named
from datalake_assets.core.table_formats import TableFormat, footer_format
from datalake_assets.core.values import Value
from datalake_assets.errors import UnreadableFile
from datalake_assets.parquet.chunk_checks import Tail, check_chunks
from datalake_assets.parquet.footer import footer_fault
from datalake_assets.parquet.stated import schema_of
from datalake_assets.parquet.stated_bounds import fatal_bound

__all__ = [
    "INT96_UNIT",
    "TAIL_BYTES",
    "AdoptedFooter",
    "bytes_needed",
    "is_parquet",
    "is_time",
    "read_adopted_footer",
    "row_groups",
]

#: Holds the footers of most files whole.
TAIL_BYTES = 64 * 1024
# Parquet format: a file ends with the footer, its length in 4 bytes, and the magic
MAGIC, ENCRYPTED = b"PAR1", b"PARE"
_END_BYTES = 8
_SMALLEST = len(MAGIC) + _END_BYTES
_Times = tuple[datetime | None, datetime | None]
#: INT96 timestamps reach from year 1 to 9999 in microseconds; nanoseconds would overflow.
INT96_UNIT = "us"


class AdoptedFooter(Value, frozen=True):
    """What the footer of a file in an adopted folder says.

    Attributes:
        file: The file, as far as it says: without a checksum, an ETag and when it was written. Its times are those of
            the time column, by the statistics; None if these do not give them.
        schema: Arrow's, as a scan reads it, without metadata of the schema as a whole.
        table: The format whose table it was written for; None if nothing marks it as one's.
        compared: The file's pages were looked at, too, as far as they have checksums.
    """

    file: DataFile
    schema: pa.Schema
    table: TableFormat | None = None
    compared: bool = False


def is_parquet(tail: bytes) -> bool:
    """Whether a file that ends so may be Parquet at all."""
    return tail.endswith((MAGIC, ENCRYPTED))


def bytes_needed(tail: bytes, size_bytes: int, *, where: str) -> int:
    """How many of a file's last bytes its footer takes, ends included.

    Args:
        tail: Some of its last bytes, eight or more.
        size_bytes: Of the whole file.
        where: The file, for messages.

    Raises:
        UnreadableFile: It is no Parquet file, or was truncated.
    """
    if not size_bytes:
        raise UnreadableFile(where, "it has no bytes")
    if tail.endswith(ENCRYPTED):
        raise UnreadableFile(where, "it is encrypted")
    if size_bytes < _SMALLEST or not tail.endswith(MAGIC):
        raise UnreadableFile(where, "it is not a Parquet file, or was truncated")
    needed = int.from_bytes(tail[-_END_BYTES : -len(MAGIC)], "little") + _END_BYTES
    if needed + len(MAGIC) > size_bytes:
        raise UnreadableFile(where, "it is not a Parquet file, or was truncated")
    return needed


def read_adopted_footer(tail: bytes, size_bytes: int, *, time_column: str | None, where: str) -> AdoptedFooter:
    """Reads a footer.

    Args:
        tail: As many of the file's last bytes as `bytes_needed` says, or more.
        size_bytes: Of the whole file.
        time_column: Whose statistics are wanted.
        where: Its path.

    Raises:
        UnreadableFile: The footer is damaged, or the columns are encrypted.
    """
    needed = bytes_needed(tail, size_bytes, where=where)
    try:
        file = pq.ParquetFile(Tail(tail[-needed:], size_bytes), coerce_int96_timestamp_unit=INT96_UNIT)
        # a signature follows the footer of a file whose columns are encrypted; pyarrow aborts when it looks at those
        if file.metadata.serialized_size != needed - _END_BYTES:
            raise UnreadableFile(where, "it is encrypted")
        check_chunks(file.metadata, size_bytes)
        if reason := fatal_bound(tail[-needed:-_END_BYTES]):
            raise UnreadableFile(where, f"its footer is damaged: {reason}")
        _check_rows(file.metadata, where)
        schema = file.schema_arrow.remove_metadata()
        table = footer_format(file.metadata.metadata or {}, schema.names)
        named = column_named(schema.names, time_column) if time_column else None
        times = _times(file, schema, named) if named is not None else (None, None)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = footer_fault(tail[-needed:-_END_BYTES], size_bytes) or f"its footer is damaged: {_brief(error)}"
        raise UnreadableFile(where, reason) from error
    stated = DataFile(where.rpartition("/")[2], file.metadata.num_rows, size_bytes, *times)
    return AdoptedFooter(stated, schema, table)


def _check_rows(metadata: pq.FileMetaData, where: str) -> None:
    there = sum(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
    if there != metadata.num_rows:
        raise UnreadableFile(where, f"its footer says {metadata.num_rows} rows, and its row groups have {there}")


def row_groups(tail: bytes, size_bytes: int, *, where: str) -> int:
    """How many row groups a footer describes, which may lie in other files; arguments as for `read_adopted_footer`.

    Raises:
        UnreadableFile: The footer is damaged.
    """
    needed = bytes_needed(tail, size_bytes, where=where)
    try:
        return int(pq.read_metadata(Tail(tail[-needed:], size_bytes)).num_row_groups)
    except (pa.ArrowException, OSError) as error:
        raise UnreadableFile(where, f"its footer is damaged: {_brief(error)}") from error


def is_time(kind: pa.DataType) -> bool:
    """Whether values of this type are moments: then rows can be ordered by them."""
    return bool(pt.is_timestamp(kind) or pt.is_date(kind))


def _times(file: pq.ParquetFile, schema: pa.Schema, name: str | None) -> _Times:
    """Earliest and latest time by the statistics; None unless each row group with values has exact ones."""
    metadata = file.metadata
    described = schema_of(metadata)
    paths = [described.column(index).path for index in range(metadata.num_columns)]
    if name not in paths or not is_time(schema.field(name).type):
        return None, None
    index, found = paths.index(name), []
    for number in range(metadata.num_row_groups):
        column = _column(file, number, index)
        statistics = column.statistics
        if statistics is not None and statistics.null_count == column.num_values:
            continue
        if statistics is None or not statistics.has_min_max:
            return None, None
        try:
            found += [_moment(statistics.min), _moment(statistics.max)]
        except OverflowError:  # Parquet's years go beyond 9999
            return None, None
    known = [moment for moment in found if moment is not None]
    return (min(known), max(known)) if known and len(known) == len(found) else (None, None)


def _column(file: pq.ParquetFile, group: int, index: int) -> Any:
    """A column chunk's metadata."""
    column = file.metadata.row_group(group).column(index)
    if column.physical_type != schema_of(file.metadata).column(index).physical_type:
        raise pa.ArrowInvalid("a column chunk is not of its column's type")
    return column


def _moment(value: Any) -> datetime | None:
    """A time as statistics give it; naive ones are UTC, days begin at midnight."""
    if isinstance(value, datetime):
        moment = datetime.fromisoformat(value.isoformat(timespec="microseconds"))  # pandas' type has nanoseconds
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    return None


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

"""Footers of an adopted folder's small files, by the native kernel: ten microseconds each, where Arrow takes hundreds.

Arrow reads the first file of each kind, and so gives its schema; the kernel those whose schema and key-values are the
same, byte for byte. Whatever it does not understand, or finds wrong, is left to Arrow to judge. It has read all of a
file by then, and so looks at the pages, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from datalake_assets.core.files import DataFile
from datalake_assets.core.schema import column_named
from datalake_assets.errors import ConfigError
from datalake_assets.lake.layout import FeedFolder
from datalake_assets.lake.store.base import ObjectInfo
from datalake_assets.parquet.adopted_footer import AdoptedFooter, is_time
from datalake_assets.parquet.native import Checked, Depth, Kernel, Part

__all__ = ["KernelFooter", "KernelLook"]

#: Files up to this size are read whole: Arrow's way reads half as much of each.
WHOLE_BYTES: Final = 128 * 1024
#: Kinds that are remembered; some writers put into each file's key-values how many rows it has.
KINDS: Final = 1024


@dataclass(frozen=True, slots=True)
class _Kind:
    """Files whose schema and key-values are the same, byte for byte.

    Attributes:
        schema: Theirs.
        leaf: Place of the time column among the schema's leaves; None if there is none, or it has no times.
        unit: Of its numbers.
    """

    schema: pa.Schema
    leaf: int | None = None
    unit: str = ""


@dataclass(frozen=True, slots=True)
class KernelFooter:
    """What the kernel says of a file, all of whose pages it walked and found right."""

    footer: AdoptedFooter
    has_checksums: bool


class KernelLook:
    """Looks at small files by the kernel, as soon as Arrow has read one of their kind.

    Args:
        kernel: The kernel.
        folder: The feed.
        by_arrow: Reads a file's footer.
    """

    def __init__(
        self, kernel: Kernel, folder: FeedFolder, by_arrow: Callable[[ObjectInfo], AdoptedFooter | None]
    ) -> None:
        self._kernel, self._store, self._by_arrow = kernel, folder.data_store, by_arrow
        self._time_column = folder.feed.time_column
        self._kinds: dict[tuple[bytes, bytes], _Kind | None] = {}
        self._leaf: int | None = None

    def look(self, infos: Sequence[ObjectInfo]) -> list[KernelFooter | None]:
        """What the kernel can say of each file; None where it takes Arrow."""
        found: list[KernelFooter | None] = [None] * len(infos)
        small = [place for place, info in enumerate(infos) if 0 < info.size_bytes <= WHOLE_BYTES]
        left = self._checked(infos, small, self._leaf, found)
        for leaf in {leaf for leaf, _ in left}:
            self._checked(infos, [place for each, place in left if each == leaf], leaf, found)
        etags = {infos[place].key: infos[place].etag for place in small if found[place] is not None}
        changed = set(self._store.changed(etags))
        return [None if infos[place].key in changed else each for place, each in enumerate(found)]

    def _checked(
        self,
        infos: Sequence[ObjectInfo],
        places: Sequence[int],
        leaf: int | None,
        found: list[KernelFooter | None],
    ) -> list[tuple[int | None, int]]:
        """Looks at the files of these places; returns those of which another leaf's times are wanted."""
        root = self._store.path("").rstrip("/")
        parts = [Part(f"{root}/{infos[place].key}", size_bytes=infos[place].size_bytes) for place in places]
        others = list[tuple[int | None, int]]()
        for place, checked in zip(places, self._kernel.check(parts, Depth.PAGES, time_leaf=leaf), strict=True):
            kind = self._kind(infos[place], checked)
            if kind is None:
                continue
            if kind.leaf not in {None, leaf}:
                others.append((kind.leaf, place))
                continue
            times = _times(kind, checked)
            if times is not None:
                found[place] = _footer(infos[place], kind, checked, times)
        return others

    def _kind(self, info: ObjectInfo, checked: Checked) -> _Kind | None:
        """A file's kind, learnt from the file itself if it is the first; None if it has to be left to Arrow."""
        if checked.refused is not None:
            return None
        digests = checked.schema_digest, checked.key_values_digest
        if digests not in self._kinds and len(self._kinds) < KINDS:
            try:
                self._kinds[digests] = self._learnt(info)
            except ConfigError:
                raise
            except Exception:  # noqa: BLE001  whoever reads it by Arrow next says what is the matter with it
                return None
        return self._kinds.get(digests)

    def _learnt(self, info: ObjectInfo) -> _Kind | None:
        """What Arrow says of a kind's first file; None where the kernel understands its times otherwise."""
        footer = self._by_arrow(info)
        if footer is None:
            return None
        named = column_named(footer.schema.names, self._time_column) if self._time_column else None
        if named is None or not is_time(footer.schema.field(named).type):
            return _Kind(footer.schema)
        body = self._store.tail(info.key, info.size_bytes, etag=info.etag)
        columns = pq.read_metadata(pa.BufferReader(body)).schema
        leaves = [number for number in range(len(columns)) if columns.column(number).path == named]
        if not leaves:
            return _Kind(footer.schema)
        kind = _Kind(footer.schema, leaves[0], _unit(columns.column(leaves[0])))
        (checked,) = self._kernel.check([Part(body)], Depth.FOOTER, time_leaf=kind.leaf)
        if checked.refused is not None or _times(kind, checked) != (footer.file.min_time, footer.file.max_time):
            return None
        self._leaf = kind.leaf
        return kind


def _footer(
    info: ObjectInfo, kind: _Kind, checked: Checked, times: tuple[datetime | None, datetime | None]
) -> KernelFooter:
    name = info.key.rpartition("/")[2]
    file = DataFile(name, checked.rows, info.size_bytes, *times, etag=info.etag, written_at=info.modified_at)
    return KernelFooter(AdoptedFooter(file, kind.schema), has_checksums=checked.checksums > 0)


def _unit(column: pq.ColumnSchema) -> str:
    """Of a column's numbers, as its logical type says."""
    logical = json.loads(column.logical_type.to_json())
    return "days" if logical.get("Type") == "Date" else str(logical.get("timeUnit", ""))


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: Microseconds of a unit, or units of a microsecond.
_LONGER = {"days": 86_400_000_000, "milliseconds": 1_000, "microseconds": 1}
_NANOSECONDS = 1_000


def _times(kind: _Kind, checked: Checked) -> tuple[datetime | None, datetime | None] | None:
    """Bounds of a file's time column; None if the kernel cannot say them."""
    if kind.leaf is None:
        return None, None
    if checked.times is None:
        return None
    try:
        low, high = (_EPOCH + timedelta(microseconds=_microseconds(each, kind.unit)) for each in checked.times)
    except (OverflowError, KeyError):
        return None
    return low, high


def _microseconds(value: int, unit: str) -> int:
    return value // _NANOSECONDS if unit == "nanoseconds" else value * _LONGER[unit]

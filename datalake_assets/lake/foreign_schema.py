"""The one schema under which the files of an adopted folder are scanned, and the files that do not fit it.

`datalake_assets.parquet.unify` says which schemas become one. Where some do not, most files decide: the others stay in
their manifests, are left out of scans, are not compacted, and are told by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa

from datalake_assets.core.partition_paths import hive_pairs
from datalake_assets.core.schema import schema_to_json
from datalake_assets.lake.foreign import FoundFile
from datalake_assets.parquet.unify import Incompatible, unify_schemas

__all__ = ["FolderSchema", "fold", "partition_names"]

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class FolderSchema:
    """What `fold` found.

    Attributes:
        schema: The columns of all files that fit, without those that the folders' names give; None without any file.
        reasons: Why the files of a schema are left out, by the schema as text.
    """

    schema: pa.Schema | None
    reasons: dict[str, str]

    def reason(self, found: FoundFile) -> str:
        """Why scans leave a file out; empty if they don't."""
        return self.reasons.get(schema_to_json(found.schema), "")


@dataclass(slots=True)
class _Kind:
    """The files of one schema."""

    schema: pa.Schema
    files: int
    oldest: datetime


def partition_names(paths: Iterable[str]) -> set[str]:
    """The columns that the folders' names give."""
    return {name for path in paths for name, _ in hive_pairs(path)}


def fold(known: pa.Schema | None, found: Sequence[FoundFile], *, named: set[str]) -> FolderSchema:
    """The schema of a folder, with the files that were found now.

    Args:
        known: The schema so far: files that came before have the right of way.
        found: The new files.
        named: Columns that the folders' names give: in a file, a column of such a name is not looked at.
    """
    kinds: dict[str, _Kind] = {}
    for each in found:
        written = each.file.written_at or _LONG_AGO
        kind = kinds.setdefault(schema_to_json(each.schema), _Kind(_without(each.schema, named), 0, written))
        kind.files, kind.oldest = kind.files + 1, min(kind.oldest, written)
    by_weight = sorted(kinds.items(), key=lambda item: (-item[1].files, item[1].oldest, item[0]))
    schema, fitting, reasons = known, [], {}
    for text, kind in by_weight:
        try:
            schema = _joined(schema, kind.schema)
            fitting.append(kind)
        except Incompatible as error:
            reasons[text] = str(error)
    if known is None and fitting:
        schema = unify_schemas([kind.schema for kind in sorted(fitting, key=lambda kind: kind.oldest)])
    return FolderSchema(schema, reasons)


def _without(schema: pa.Schema, names: set[str]) -> pa.Schema:
    return pa.schema([field for field in schema if field.name not in names])


def _joined(known: pa.Schema | None, other: pa.Schema) -> pa.Schema:
    """The schema of both, if a scan can read files of ``other`` under it.

    Raises:
        Incompatible: There is none.
    """
    if len(set(other.names)) < len(other.names):
        raise Incompatible("two columns share a name")
    joined = other if known is None else unify_schemas([known, other])
    for field in other:
        try:
            pa.array([], field.type).cast(joined.field(field.name).type)
        except (pa.ArrowException, NotImplementedError) as error:
            raise Incompatible(f"column {field.name!r} cannot be read as {joined.field(field.name).type}") from error
    return joined

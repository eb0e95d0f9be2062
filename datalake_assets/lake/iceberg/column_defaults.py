"""Columns of a feed's table to which another engine gave a default, and what a feed cannot do beside them.

A file that lacks a column has its ``initial-default`` for Iceberg's readers, and whoever writes a row without it enters
its ``write-default`` (Iceberg specification, "Default values"). A feed's files are read and merged by the names of
their columns, where what is missing is null: values would be changed, so that it is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from pyiceberg.types import IcebergType, ListType, MapType, StructType

from datalake_assets.errors import ConfigError

__all__ = ["check_defaults", "defaulted"]


def check_defaults(names: Collection[str], within: StructType) -> None:
    """Refuses to write rows whose values readers would take for others.

    Args:
        names: The columns that rows have.
        within: The table's, or the fields of a struct in it.

    Raises:
        ConfigError: A column has such a default, or is missing and may not be.
    """
    for own in within.fields:
        what = f"the Iceberg table has column {own.name!r}"
        if own.name in names:
            if own.initial_default is not None:
                raise ConfigError(
                    f"{what} with a default for rows before it, which another engine gave it and readers of the feed do"
                    " not see: rename the column in the feed"
                )
        elif own.write_default != own.initial_default:
            raise ConfigError(
                f"{what}, which the feed does not have, and whose default for new rows another engine made"
                f" {own.write_default!r}: make it {own.initial_default!r}, which rows before it have"
            )
        elif own.required and own.initial_default is None:
            raise ConfigError(
                f"{what}, which the feed does not have, and in which another engine wants a value: have it take nulls"
            )


def defaulted(table: StructType) -> str | None:
    """Full name of a column, or of a field in one, that has a default in files that lack it; None if there is none."""
    for each in table.fields:
        if each.initial_default is not None:
            return str(each.name)
        for part in _structs_in(each.field_type):
            if (found := defaulted(part)) is not None:
                return f"{each.name}.{found}"
    return None


def _structs_in(kind: IcebergType) -> Iterator[StructType]:
    if isinstance(kind, StructType):
        yield kind
    elif isinstance(kind, ListType):
        yield from _structs_in(kind.element_type)
    elif isinstance(kind, MapType):
        yield from _structs_in(kind.key_type)
        yield from _structs_in(kind.value_type)

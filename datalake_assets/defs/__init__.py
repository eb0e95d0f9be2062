"""DAGSTER GLUE: assets, IO managers, checks, sensors, schedules and jobs; no rules of its own.

The names below are for other people's projects, see ``docs/how-to/use-it-in-your-own-project.md``. They are loaded when
they are asked for: importing a module of this package loads that module and no other.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datalake_assets.defs.public import (
        LakeResource,
        ParquetLakeIOManager,
        build_compaction_sensor,
        build_file_size_checks,
        build_freshness_checks,
    )

__all__ = [
    "LakeResource",
    "ParquetLakeIOManager",
    "build_compaction_sensor",
    "build_file_size_checks",
    "build_freshness_checks",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from datalake_assets.defs import public  # noqa: PLC0415  see above

        return getattr(public, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

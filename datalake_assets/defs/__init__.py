"""DAGSTER GLUE: assets, IO managers, checks, sensors, schedules and jobs; no rules of its own.

The entry point is `datalake_assets.defs.build`. The names below are for other people's projects, see
``docs/how-to/use-it-in-your-own-project.md``. They are loaded when they are asked for: importing a module of this
package loads that module and no other.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datalake_assets.defs.duckdb_views import LakeDuckDBResource
    from datalake_assets.defs.projects import build_compaction_sensor, build_file_size_checks, build_freshness_checks
    from datalake_assets.defs.resources import LakeResource
    from datalake_assets.defs.s3_lake import S3LakeResource
    from datalake_assets.defs.storage.io_manager import ParquetLakeIOManager

__all__ = [
    "LakeDuckDBResource",
    "LakeResource",
    "ParquetLakeIOManager",
    "S3LakeResource",
    "build_compaction_sensor",
    "build_file_size_checks",
    "build_freshness_checks",
]

_MODULES = {
    "LakeDuckDBResource": "duckdb_views",
    "LakeResource": "resources",
    "ParquetLakeIOManager": "storage.io_manager",
    "S3LakeResource": "s3_lake",
    "build_compaction_sensor": "projects",
    "build_file_size_checks": "projects",
    "build_freshness_checks": "projects",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

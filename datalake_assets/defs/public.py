"""What other people's Dagster projects use of this package; reached as ``datalake_assets.defs``."""

from datalake_assets.defs.asset_checks import build_file_size_checks, build_freshness_checks
from datalake_assets.defs.asset_sensor import build_compaction_sensor
from datalake_assets.defs.io_managers import ParquetLakeIOManager
from datalake_assets.defs.resources import LakeResource

__all__ = [
    "LakeResource",
    "ParquetLakeIOManager",
    "build_compaction_sensor",
    "build_file_size_checks",
    "build_freshness_checks",
]

"""Assets of anybody's project, made for a test: what they return, how they run, what Dagster knows of them."""

import dagster as dg
import pandas as pd
import pyarrow as pa
import pytest

EXPECTED_WARNINGS = pytest.mark.filterwarnings(
    "ignore:.*dagster_run is deprecated:DeprecationWarning", "ignore::dagster.BetaWarning"
)
DAILY = dg.DailyPartitionsDefinition("2026-01-01")
TIMED = {"datalake/time_column": "at"}
D1, D2, D3 = "2026-01-01", "2026-01-02", "2026-01-03"


def span(first: str, last: str) -> dict[str, object]:
    tags = {"dagster/asset_partition_range_start": first, "dagster/asset_partition_range_end": last}
    return {"tags": tags}


def asset(frame: object, **how: object) -> dg.AssetsDefinition:
    """An asset that returns this, or what this returns."""
    how = {"io_manager_key": "lake", "name": "orders", **how}

    @dg.asset(**how)
    def orders(context: dg.AssetExecutionContext):
        return frame(context) if callable(frame) else frame

    return orders


def daily(frame: object, **how: object) -> dg.AssetsDefinition:
    return asset(frame, **{"partitions_def": DAILY, "backfill_policy": dg.BackfillPolicy.single_run(), **how})


def frame(*ids: int, day: str = D1) -> pd.DataFrame:
    return pd.DataFrame({"id": list(ids), "at": pd.to_datetime([f"{day} 12:00"] * len(ids))})


def downstream(wanted: object, seen: list, **how: object) -> dg.AssetsDefinition:
    def take(orders):
        seen.append(orders.read_all() if isinstance(orders, pa.RecordBatchReader) else orders)

    take.__annotations__ = {"orders": wanted, "return": None}
    return dg.asset(name="taken", io_manager_key="lake", **how)(take)


def materialization(instance: dg.DagsterInstance, key: str = "orders") -> dg.AssetMaterialization:
    return instance.get_latest_materialization_event(dg.AssetKey.from_user_string(key)).asset_materialization


def ids(found: list[dict]) -> list[int]:
    return sorted(each["id"] for each in found)


def values(instance: dg.DagsterInstance) -> dict[str, object]:
    return {name: value.value for name, value in materialization(instance).metadata.items()}

"""The shop's assets. What they return is stored by the IO manager ``lake``; nothing here knows how."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import pandas as pd
import pyarrow as pa

from shop.systems import catalogue, orders_of, track_clicks

# a day can be filled in while it goes on
DAILY = dg.DailyPartitionsDefinition("2025-01-01", end_offset=1)


@dg.asset(
    partitions_def=DAILY,
    io_manager_key="lake",
    backfill_policy=dg.BackfillPolicy.single_run(),
    metadata={"datalake/time_column": "created_at"},
)
def orders(context: dg.AssetExecutionContext) -> pd.DataFrame:
    """The shop's orders. A backfill of many days is one run: their rows are told apart by ``created_at``."""
    return pd.concat([orders_of(date.fromisoformat(day)) for day in context.partition_keys])


@dg.asset(io_manager_key="lake", metadata={"datalake/retention": {"versions": 30}})
def products() -> pa.Table:
    """All products. Each run makes a new version, and readers get the newest; 30 are kept."""
    return pa.Table.from_pandas(catalogue(), preserve_index=False)


@dg.asset(partitions_def=DAILY, io_manager_key="lake")
def revenue(orders: pd.DataFrame, products: pd.DataFrame) -> pd.DataFrame:
    """Revenue of a day by category: reads a day of orders, and the newest version of products."""
    sold = orders.merge(products, on="product_id")
    return (sold["price"] * sold["quantity"]).groupby(sold["category"]).sum().rename("revenue").reset_index()


def clicks_in(folder: Path) -> dg.AssetsDefinition:
    """The clicks that a tracker of others writes to a folder; only ``dagster/uri`` says where."""

    @dg.asset(metadata={"dagster/uri": str(folder), "datalake/time_column": "clicked_at"})
    def clicks() -> None:
        """Yesterday's clicks, as the tracker delivers them: in small files."""
        track_clicks(folder, datetime.now(UTC).date() - timedelta(days=1))

    return clicks

"""The batch flow's code location: the feeds of the lake, and two assets of our own at its end.

``taxi/validation`` asks the made data what has to be true of it, a check for each query; ``taxi/news`` tells somebody,
and does not run when a check failed. The rest (files in, quarantine, partitions, joins, catalog) is what feeds declare:
see ``feeds/``.
"""

from pathlib import Path

import dagster as dg

from datalake_assets.defs import LakeDuckDBResource, LakeResource
from datalake_assets.defs.build import build_definitions
from datalake_assets.notify.channels import open_channels, send
from datalake_assets.notify.incidents import Message
from datalake_assets.settings import Settings, load_settings

MARTS = ("trips_enriched", "trips_rejected", "zone_revenue")
VALIDATION = dg.AssetKey(["taxi", "validation"])
_FILES = sorted(Path(__file__).with_name("validation").glob("*.sql"))
#: Each gives the rows that break what it is named for.
QUERIES = {path.stem: path.read_text(encoding="utf-8") for path in _FILES}


@dg.asset(
    key=VALIDATION,
    deps=[dg.AssetDep(dg.AssetKey(["marts", name]), partition_mapping=dg.AllPartitionMapping()) for name in MARTS],
    check_specs=[dg.AssetCheckSpec(name, asset=VALIDATION, blocking=True) for name in QUERIES],
    group_name="taxi",
    kinds={"duckdb"},
)
def validation(duckdb: LakeDuckDBResource) -> dg.MaterializeResult:
    """What has to be true of all trips together, whatever their month."""
    with duckdb.get_connection() as connection:
        broken = {name: connection.execute(query).fetchall() for name, query in QUERIES.items()}
        trips, revenue = connection.execute("SELECT count(*), sum(total_amount) FROM trips_enriched").fetchone()
        (rejected,) = connection.execute("SELECT count(*) FROM trips_rejected").fetchone()
    checks = [
        dg.AssetCheckResult(check_name=name, passed=not rows, metadata={"rows": len(rows), "first": str(rows[:3])})
        for name, rows in broken.items()
    ]
    figures = {"trips": trips, "rejected": rejected, "revenue_usd": float(revenue)}
    return dg.MaterializeResult(metadata=figures, check_results=checks)


@dg.asset(key=["taxi", "news"], deps=[VALIDATION], group_name="taxi")
def news(context: dg.AssetExecutionContext, lake: LakeResource) -> None:
    """Tells that the trips are there: the log, and a webhook, SNS or e-mail if ``DATALAKE_NOTIFY_…`` names one."""
    event = context.instance.get_latest_materialization_event(VALIDATION)
    figures = {name: value.value for name, value in event.asset_materialization.metadata.items()}
    text = "{trips:,} trips, {rejected:,} rejected, {revenue_usd:,.2f} USD".format(**figures)
    message = Message("nyc_taxi", "info", "NYC taxi trips are up to date", text)
    failed = send(open_channels(lake.settings), message)
    for channel, error in failed.items():
        context.log.warning("not told by %s: %s", channel, error)
    context.log.info(text)
    context.add_output_metadata({"told": text, "not_told_by": ", ".join(failed)})


def definitions_of(settings: Settings) -> dg.Definitions:
    """The feeds of a lake, and our own assets."""
    duckdb = LakeDuckDBResource(lake=LakeResource(settings=settings))
    own = dg.Definitions(assets=[validation, news], resources={"duckdb": duckdb})
    return dg.Definitions.merge(build_definitions(settings), own)


defs = definitions_of(load_settings())

"""The catalogs of the lake as an asset: a conditional flow whose states show in Dagster, and the sensor that starts it.

::

    look_for_database ──missing──> create_database ─┐
            └───────────there───────────────────────┴> look_for_tables ──missing──> create_tables ─┐
                                                              ├────────behind───> update_tables ───┤
                                                              └────────always──────────────────────┴> finish

What a run skips was not needed. No step hands anything to the next: each looks for itself, in the lake and in the
catalog, so that it can be retried, and a run begun again from any step. It tells by its metadata what it has done.
"""

import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg

from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runs import tag_run
from datalake_assets.defs.runtime import failures_named
from datalake_assets.defs.upkeep.report_asset import RefreshSensor
from datalake_assets.errors import DatalakeError
from datalake_assets.feed import Feed

if TYPE_CHECKING:
    from datalake_assets.catalog.base import Outcome
    from datalake_assets.catalog.sync import CatalogSync

__all__ = ["CATALOG", "catalog_asset", "catalog_sensor", "keeps_catalog"]

T = TypeVar("T")

CATALOG = dg.AssetKey("catalog")
INTERVAL_S = 60
#: Seconds between two runs at the least: exports come in bursts.
AT_MOST_EVERY_S = 600
#: A step that fails is tried again: catalogs are others' services, and what was done is found.
_AGAIN = dg.RetryPolicy(max_retries=3, delay=5, backoff=dg.Backoff.EXPONENTIAL)
_NOTHING = dg.Out(dg.Nothing)
_PERHAPS = dg.Out(dg.Nothing, is_required=False)
_START = {"start": dg.In(dg.Nothing)}

_DESCRIPTION = """\
Feeds and views as catalogs have them, so that DuckDB, Athena and Spark find them by name: those that
`DATALAKE_CATALOG` names; of a local lake the file `lake.duckdb`.

If the database or a table is missing it is created; else it gets the columns and partitions that it lacks. A step that
was skipped was not needed. `catalog_sensor` starts this after exports; `datalake catalog sync` does the same.
"""


def keeps_catalog(lake: Lake) -> bool:
    """Whether there is a catalog to be kept; of a lake in S3 there is none unless settings name one."""
    return bool(lake.settings.catalog.strip(", ")) or "://" not in lake.uri


def catalog_asset(feeds: Sequence[Feed] = ()) -> dg.AssetsDefinition:
    """The asset; its steps read the registry anew.

    Args:
        feeds: What it enters, upstream of it.
    """
    names = {f"feed_{number}": asset_key(feed) for number, feed in enumerate(feeds)}

    def catalog(**upstream: Any) -> Any:
        there, missing = _look_for_database(start=list(upstream.values())) if upstream else _look_for_database()
        tables_missing, behind, always = _look_for_tables(start=[there, _create_database(start=missing)])
        created, updated = _create_tables(start=tables_missing), _update_tables(start=behind)
        return _finish(start=[created, updated, always])

    # Dagster reads a graph's inputs off its parameters
    catalog.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # so it does of every function
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
    )
    ins = {name: dg.AssetIn(key=key, dagster_type=dg.Nothing) for name, key in names.items()}
    make = dg.graph_asset(
        name=CATALOG.path[-1], ins=ins, group_name="lake", kinds={"catalog"}, description=_DESCRIPTION
    )
    made: dg.AssetsDefinition = make(catalog)
    return made


def _op(name: str, out: Any, what: str) -> Callable[[Any], dg.OpDefinition]:
    return dg.op(name=name, ins=_START, out=out, retry_policy=_AGAIN, required_resource_keys={"lake"}, description=what)


def _asked(context: dg.OpExecutionContext, ask: Callable[["CatalogSync"], T]) -> tuple[list[T], list["Outcome"]]:
    """What each catalog answers by what it is to have now; one that fails keeps no other from its turn.

    Returns:
        The answers of those that gave one, and what failed of the others.

    Raises:
        dagster.Failure: None gave one, so that a repetition may help.
    """
    # brings DuckDB and pyarrow's datasets, which loading the location does not need
    from datalake_assets.catalog.base import Outcome  # noqa: PLC0415
    from datalake_assets.catalog.sync import CatalogSync, Wanted, catalog_kinds, open_catalogs  # noqa: PLC0415

    tag_run(context.instance, context.run)
    lake: Lake = context.resources.lake.open()
    answers: list[T] = []
    failed: list[DatalakeError] = []
    told: list[Outcome] = []
    with failures_named(CATALOG.to_user_string()):
        kinds = catalog_kinds(lake.settings, lake.store)
        if not kinds:
            return [], []
        wanted = Wanted.of(lake.store, lake.registry.list().feeds)
        for each in open_catalogs(lake.settings, lake.store, kinds):
            try:
                with each as catalog:
                    answers.append(ask(CatalogSync(catalog, wanted, lake=lake.uri)))
            except DatalakeError as error:
                context.log.warning("the catalog %s: %s", each.kind, error)
                failed.append(error)
                told.append(Outcome(each.kind, f"the catalog {each.kind}", "failed", detail=str(error)))
        if failed and not answers:
            raise failed[0]
    return answers, told


def _tell(context: dg.OpExecutionContext, told: Iterable["Outcome"], output: str) -> None:
    context.add_output_metadata(_metadata(list(told)), output_name=output)


def _metadata(told: Sequence["Outcome"]) -> dict[str, dg.MetadataValue]:
    rows = [
        f"| {each.catalog} | {each.name} | {each.state} | {each.partitions_added} | {each.partitions_removed} |"
        f" {each.detail.replace('|', '/')} |"
        for each in told
    ]
    head = ["| catalog | name | state | partitions added | removed | |", "|---|---|---|---:|---:|---|"]
    return {
        "datalake/catalog": dg.MetadataValue.md("\n".join([*head, *rows])),
        "datalake/partitions_added": dg.MetadataValue.int(sum(each.partitions_added for each in told)),
        "datalake/failed": dg.MetadataValue.int(sum(each.state == "failed" for each in told)),
    }


@_op("look_for_database", {"there": _PERHAPS, "missing": _PERHAPS}, "Looks whether each catalog has its database.")
def _look_for_database(context: dg.OpExecutionContext) -> Iterator[dg.Output[None]]:
    has, _ = _asked(context, lambda each: each.has_database())
    yield dg.Output(None, "there" if all(has) else "missing")


@_op("create_database", {"result": _NOTHING}, "Creates the databases that are missing.")
def _create_database(context: dg.OpExecutionContext) -> None:
    _asked(context, lambda each: each.ensure_database())


@_op(
    "look_for_tables",
    {"missing": _PERHAPS, "behind": _PERHAPS, "always": _NOTHING},
    "Compares the feeds with what each catalog has of them.",
)
def _look_for_tables(context: dg.OpExecutionContext) -> Iterator[dg.Output[None]]:
    found, _ = _asked(context, lambda each: (len(each.absent()), len(each.behind())))
    missing, behind = sum(one for one, _ in found), sum(other for _, other in found)
    if missing:
        yield dg.Output(None, "missing", metadata={"datalake/feeds": missing})
    if behind:
        yield dg.Output(None, "behind", metadata={"datalake/feeds": behind})
    yield dg.Output(None, "always")


@_op("create_tables", {"result": _NOTHING}, "Enters the feeds that are missing, with all their partitions.")
def _create_tables(context: dg.OpExecutionContext) -> None:
    told, failed = _asked(context, lambda each: each.create())
    _tell(context, [*chain.from_iterable(told), *failed], "result")


@_op("update_tables", {"result": _NOTHING}, "Gives the feeds that are there the columns and partitions they lack.")
def _update_tables(context: dg.OpExecutionContext) -> None:
    told, failed = _asked(context, lambda each: each.update())
    _tell(context, [*chain.from_iterable(told), *failed], "result")


@_op("finish", {"result": _NOTHING}, "Makes the views, and tells of every feed what has become of it.")
def _finish(context: dg.OpExecutionContext) -> None:
    settled, of_catalogs = _asked(context, lambda each: each.settled())
    told = [*chain.from_iterable(settled), *of_catalogs]
    _tell(context, told, "result")
    failed = [f"{each.name}: {each.detail}" for each in told if each.state == "failed"]
    if failed:
        raise dg.Failure(
            f"{len(failed)} feeds and views could not be entered: {'; '.join(failed)}",
            metadata=_metadata(told),
            allow_retries=False,
        )


def catalog_sensor(feeds: Sequence[Feed], *, at_most_every_s: float = AT_MOST_EVERY_S) -> dg.SensorDefinition:
    """The sensor that materializes `catalog` after exports; quiet otherwise.

    Args:
        feeds: The feeds that are watched.
        at_most_every_s: Seconds between two runs at the least.
    """
    refresh = RefreshSensor([asset_key(feed) for feed in feeds], of=CATALOG, at_most_every_s=at_most_every_s, jobs=())

    @dg.sensor(
        name="catalog_sensor",
        target=dg.AssetSelection.assets(CATALOG),
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Brings the catalogs in step after exports, at most every ten minutes.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        return refresh.tick(context.instance, context.cursor, now=time.time())

    return look

"""Sensors that look at sources for new items, like dropped files, and launch exports of those that they find.

There is one per feed: a sensor's runs have to be of assets with the same partitions. What a sensor finds is no more
than a reason to look: the export decides by the lake's own ledger, so that nothing is landed twice for it, and whatever
a failed run left is found again.
"""

from collections.abc import Callable

import dagster as dg

from datalake_assets.core.batches import LandedItems, News
from datalake_assets.defs.metadata import asset_key
from datalake_assets.defs.upkeep.queue_depth import Connect, is_running
from datalake_assets.errors import ConfigError, DatalakeError
from datalake_assets.feed import Feed
from datalake_assets.sources.base import SourceSystem, TellsNews

__all__ = ["new_items_sensor"]

#: Seconds between two looks.
INTERVAL_S = 30
#: Names that a run is given; of more it lists what there is.
MOST_NAMES = 1_000


def new_items_sensor(
    feed: Feed,
    connect: Connect,
    landed: Callable[[], LandedItems | None],
    next_run: Callable[[dg.DagsterInstance, list[str]], dg.RunRequest],
) -> dg.SensorDefinition:
    """The sensor of a feed whose source can be looked at for new items.

    Args:
        feed: The feed.
        connect: Connects to its source.
        landed: What the lake has of it; asked once, and kept.
        next_run: The run that lands items of these names, or of no names all that there are.
    """
    known: list[LandedItems] = []

    @dg.sensor(
        name=f"{feed.exported_from.news_sensor}_{feed.name}",
        target=dg.AssetSelection.assets(asset_key(feed)),
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Looks at {feed.exported_from.where} for what is new, and launches an export of {feed.path}.",
    )
    def look(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        if is_running(context.instance, feed):
            return dg.SkipReason(f"an export of {feed.path} is under way")
        try:
            if not known:
                known.extend(each for each in (landed(),) if each is not None)
            with connect(feed.source.type) as source:
                news = _asked(source, feed, known[0], context.cursor or "")
        except DatalakeError as error:
            context.log.warning(str(error))
            return dg.SkipReason(str(error))
        return _found(context, news, next_run)

    return look


def _asked(source: SourceSystem, feed: Feed, landed: LandedItems, cursor: str) -> News:
    if not isinstance(source, TellsNews):
        raise ConfigError(f"feed {feed.name!r}: source {feed.source.type} cannot be looked at for new items")
    return source.news(feed, landed, cursor)


def _found(
    context: dg.SensorEvaluationContext,
    news: News,
    next_run: Callable[[dg.DagsterInstance, list[str]], dg.RunRequest],
) -> dg.SensorResult:
    if not news.items:
        return dg.SensorResult(skip_reason=f"nothing new among {news.looked_at:,} items", cursor=news.cursor)
    names = list(news.items) if len(news.items) <= MOST_NAMES else []
    context.log.info("%d new items", len(news.items))
    return dg.SensorResult(run_requests=[next_run(context.instance, names)], cursor=news.cursor)

"""Whether feeds could be exported: asked of their files and of their sources, changing nothing."""

from __future__ import annotations

from dataclasses import dataclass

from datalake_assets.cli.session import Session
from datalake_assets.config import AssetSource, Feed, FeedKind
from datalake_assets.errors import ConfigError, DatalakeError
from datalake_assets.lake.owners import check_ownership
from datalake_assets.lake.store import Store
from datalake_assets.sources.base import SourceSystem

__all__ = ["CheckResult", "check_feeds"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check of a feed found.

    Attributes:
        feed: The feed's name, or the file that is none.
        problem: On one line; None if there is none.
    """

    feed: str
    problem: str | None = None


def check_feeds(session: Session, name: str | None) -> list[CheckResult]:
    """Checks one feed, or all active ones and the files that are none.

    Raises:
        FeedNotFound: There is no such feed.
    """
    if name is not None:
        feeds, results = [session.registry.get(name)], []
    else:
        listing = session.registry.list()
        feeds = list(listing.feeds)
        results = [CheckResult(problem.file, problem.reason) for problem in listing.problems]
    results += [_check_folder(session.store, feed) for feed in feeds if feed.kind is FeedKind.FOLDER]
    results += [CheckResult(feed.name) for feed in feeds if isinstance(feed.source, AssetSource)]
    exported = [feed for feed in feeds if feed.is_exported]
    if not exported:
        return results
    try:
        with session.source() as source:
            results += [_check(source, feed) for feed in exported]
    except ConfigError as error:
        results += [CheckResult(feed.name, str(error)) for feed in exported]
    return results


def _check_folder(store: Store, feed: Feed) -> CheckResult:
    try:
        check_ownership(store, feed)
    except DatalakeError as error:
        return CheckResult(feed.name, str(error))
    return CheckResult(feed.name)


def _check(source: SourceSystem, feed: Feed) -> CheckResult:
    try:
        source.check(feed)
    except DatalakeError as error:
        return CheckResult(feed.name, str(error))
    return CheckResult(feed.name)

"""Gathers the figures behind ``datalake report``, table by table, with what could not be landed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import fields, replace

from datalake_assets.core.compaction.plan import CompactionRequest
from datalake_assets.core.partitions import UNKNOWN_PARTITION, partition_key
from datalake_assets.core.report.figures import FeedStatistics, Quarantined, ReadFile, ReadFiles
from datalake_assets.errors import DatalakeError, ObjectNotFound, unforeseen_text
from datalake_assets.feed import Feed
from datalake_assets.feed_sources import PositionKind
from datalake_assets.lake.layout import quarantine_folder
from datalake_assets.lake.store.base import ObjectInfo, Store, is_far
from datalake_assets.lake.tables import feed_figures, has_manifests, open_table

__all__ = ["QUARANTINE_BYTES", "FeedStatistics", "lake_statistics", "rebuild_summaries"]

logger = logging.getLogger(__name__)

#: Requests under way at once, where the lake is at the other end of a wire.
THREADS = 16
#: Bytes of a feed's quarantine that are read to count rows; of what lies beyond, nothing is known but its size.
QUARANTINE_BYTES = 8 << 20


def lake_statistics(
    store: Store, feeds: Sequence[Feed], request: CompactionRequest | None = None
) -> tuple[FeedStatistics, ...]:
    """The figures of each feed, in the order given.

    Takes two listings and two requests per feed, one request per partition, and up to `QUARANTINE_BYTES` of its
    quarantine; of a feed of items its ledger besides.

    Args:
        store: The lake.
        feeds: The feeds.
        request: The installation's compaction, for what it would do; default: that of a development environment.

    Raises:
        LakeError: The lake cannot be read. A manifest that is damaged is reported in ``problems`` instead, and a table
            that its own catalog or folder does not have any more in ``unreadable``.
    """
    with ThreadPoolExecutor(THREADS) as pool:
        threads = pool if is_far(store.uri) else None
        asked = request or CompactionRequest()
        return tuple(_readable_statistics(store, feed, asked, threads) for feed in feeds)


def _readable_statistics(
    store: Store, feed: Feed, request: CompactionRequest, threads: Executor | None
) -> FeedStatistics:
    """A feed's figures; of one whose log is not the lake's own, and cannot be read, why that is so."""
    try:
        return _statistics(store, feed, request, threads)
    except DatalakeError as error:
        if has_manifests(feed):
            raise
        return FeedStatistics(feed, (), unreadable=str(error))
    except Exception as error:
        if has_manifests(feed):
            raise
        logger.exception("the figures of %s", feed.path)
        return FeedStatistics(feed, (), unreadable=unforeseen_text(error))


def _statistics(store: Store, feed: Feed, request: CompactionRequest, threads: Executor | None) -> FeedStatistics:
    figures = feed_figures(store, feed, request, threads=threads)
    return replace(
        figures, quarantined=_Quarantine(store, feed, threads).counted(), read_files=_read_files(store, feed)
    )


#: Dropped files that a report names, those that were written last.
NAMED_FILES = 1_000


def _read_files(store: Store, feed: Feed) -> ReadFiles | None:
    """What a feed's ledger remembers of dropped files; None if it has none."""
    if not feed.is_exported or feed.position_kind is not PositionKind.IDS:
        return None
    import pyarrow.compute as pc  # noqa: PLC0415  few feeds have any

    landed_items = open_table(store, feed).plan().request.landed
    entries = None if landed_items is None else landed_items.entries()
    if entries is None or not entries.num_rows:
        return None
    landed = entries.filter(pc.equal(entries["refused"], ""))
    newest = entries.sort_by([("modified", "descending"), ("name", "ascending")]).slice(0, NAMED_FILES)
    named = newest.select([each.name for each in fields(ReadFile)]).to_pylist()
    sums = {name: pc.sum(landed[name]).as_py() or 0 for name in ("rows", "rejected", "size_bytes", "seconds")}
    return ReadFiles(
        newest=tuple(ReadFile(**each) for each in named),
        landed=landed.num_rows,
        refused=entries.num_rows - landed.num_rows,
        **sums,
    )


def rebuild_summaries(store: Store, statistics: Sequence[FeedStatistics]) -> tuple[FeedStatistics, ...]:
    """Writes every feed's summary anew; not those of feeds with manifests that cannot be read.

    Returns:
        The feeds that were left out.
    """
    for each in statistics:
        if not (each.problems or each.unreadable):
            open_table(store, each.feed).rebuild_summary(each)
    return tuple(each for each in statistics if each.problems or each.unreadable)


class _Quarantine:
    """What of a feed could not be landed."""

    def __init__(self, store: Store, feed: Feed, threads: Executor | None) -> None:
        self._store, self._feed, self._threads = store, feed, threads
        self._folder = quarantine_folder(feed)

    def counted(self) -> Quarantined:
        """Counts the rows in quarantine by partition; up to `QUARANTINE_BYTES` of them are read."""
        listed = sorted(self._store.list(self._folder), key=lambda info: info.key)
        taken = list(_within(listed, QUARANTINE_BYTES))
        if not taken:
            size_bytes = sum(info.size_bytes for info in listed)
            return Quarantined(objects=len(listed), size_bytes=size_bytes, is_exact=not listed)
        from datalake_assets.core.row_texts import QuarantinedRow  # noqa: PLC0415  loads Arrow, and few feeds have any

        found: dict[str, set[str]] = {}
        for info, body in zip(taken, _mapped(self._body, taken, self._threads), strict=True):
            rows = (QuarantinedRow.from_line(line).identity for line in body.split(b"\n") if line)
            found.setdefault(self._quarantine_key(info.key), set()).update(rows)
        return Quarantined(
            objects=len(listed),
            size_bytes=sum(info.size_bytes for info in listed),
            rows={key: len(distinct) for key, distinct in sorted(found.items())},
            is_exact=len(taken) == len(listed),
        )

    def _body(self, info: ObjectInfo) -> bytes:
        try:
            return self._store.get(info.key)[0]
        except ObjectNotFound:  # somebody has just cleaned up
            return b""

    def _quarantine_key(self, name: str) -> str:
        path = name.removeprefix(f"{self._folder}/").rpartition("/")[0]
        return (None if path == UNKNOWN_PARTITION else partition_key(self._feed, path)) or UNKNOWN_PARTITION


def _mapped(
    function: Callable[[ObjectInfo], bytes], items: Iterable[ObjectInfo], threads: Executor | None
) -> Iterable[bytes]:
    return map(function, items) if threads is None else threads.map(function, items)


def _within(listed: Iterable[ObjectInfo], budget_bytes: int) -> Iterator[ObjectInfo]:
    for info in listed:
        budget_bytes -= info.size_bytes
        if budget_bytes < 0:
            return
        yield info

"""``_metadata.json``: a summary per feed for people and scripts; rebuilt from the manifests, never the truth."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from datalake_assets.core.facts import PartitionFacts
from datalake_assets.core.partitions import partition_path
from datalake_assets.errors import AmbiguousWrite, PreconditionFailed
from datalake_assets.feed import Feed
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.swap import change_object, known_object
from datalake_assets.lake.table import FeedTotals

__all__ = ["Summary"]

_MB = 1_000_000
#: Decimals of a size in megabytes: what is counted from a summary is what is counted from its manifests.
_TO_THE_BYTE = 6
#: Attempts to merge against other processes; a lost one is only a summary that is a run late.
ATTEMPTS = 5


class Summary:
    """The summary of one feed.

    Args:
        store: The lake.
        feed: Whose it is.
    """

    def __init__(self, store: Store, feed: Feed) -> None:
        self._store, self._feed = store, feed
        self.folder = f"metadata/{feed.path}"
        self.key = f"{self.folder}/_metadata.json"

    def merge(self, reports: Sequence[PartitionFacts], *, removed: Iterable[str], at: datetime | None) -> FeedTotals:
        """Takes over ``reports``; once per run. Losing every race leaves the other's summary, without an error.

        Args:
            reports: Of partitions that changed.
            removed: Keys of partitions that are gone.
            at: The time of the export; None: it was none.

        Returns:
            The feed as a whole, as it is now.
        """
        body = b""

        def merged(found: bytes | None) -> bytes:
            nonlocal body
            body = self._merged(_document(found), reports, removed=removed, at=at)
            return body

        with contextlib.suppress(PreconditionFailed, AmbiguousWrite):
            change_object(self._store, self.key, merged, attempts=ATTEMPTS)
        return _totals(json.loads(body))

    def mend(self, reports: Sequence[PartitionFacts], *, at: datetime) -> None:
        """Puts right what a crash between a commit and its summary left behind; writes only if something differs.

        Args:
            reports: All partitions.
            at: The time of the last export, if the summary doesn't say.
        """

        def mended(found: bytes | None) -> bytes | None:
            document = _document(found)
            if not document and not any(report.files for report in reports):
                return None
            last = document.get("last_export")
            body = self._merged({}, reports, removed=(), at=datetime.fromisoformat(last) if last else at)
            return None if json.loads(body) == document else body

        with contextlib.suppress(PreconditionFailed, AmbiguousWrite):  # a writer has just written a newer one
            change_object(self._store, self.key, mended, attempts=1)

    def totals(self) -> FeedTotals | None:
        """The feed as a whole, at the last write; None if nobody wrote it, or the summary cannot be read."""
        try:
            return _totals(_document(known_object(self._store, self.key).body))
        except (KeyError, TypeError):
            return None

    def last_export(self) -> datetime | None:
        """When the feed was last exported; None if the summary doesn't say: it is never the truth."""
        try:
            at = datetime.fromisoformat(_document(known_object(self._store, self.key).body)["last_export"])
        except (ValueError, KeyError, TypeError):
            return None
        return at if at.tzinfo else None

    def rebuild(self, reports: Sequence[PartitionFacts], *, at: datetime) -> None:
        """Writes it anew from reports of all partitions."""
        self._store.put(self.key, self._merged({}, reports, removed=(), at=at))

    def _merged(
        self,
        document: Mapping[str, Any],
        reports: Sequence[PartitionFacts],
        *,
        removed: Iterable[str],
        at: datetime | None,
    ) -> bytes:
        partitions = {each["path"]: each for each in document.get("partitions", ())}
        for report in reports:
            path = partition_path(self._feed, report.key) or report.key
            partitions[path] = {
                "path": path,
                "records": report.rows,
                "size_mb": round(report.size_bytes / _MB, _TO_THE_BYTE),
                "files": report.files,
                "small_files": report.small_files,
            }
        for key in removed:
            partitions.pop(partition_path(self._feed, key) or key, None)
        in_order = sorted(partitions.values(), key=lambda each: (len(each["path"]), each["path"]))  # v2 before v10
        kept = [each for each in in_order if each["files"]]
        total = {
            "source": self._feed.name,
            "last_export": at.isoformat() if at else document.get("last_export"),
            "total_records": sum(each["records"] for each in kept),
            "total_size_mb": round(sum(each["size_mb"] for each in kept), _TO_THE_BYTE),
            "partitions": kept,
        }
        return json.dumps(total, indent=1).encode()


def _document(body: bytes | None) -> Mapping[str, Any]:
    """What a summary says; one that cannot be read says nothing, and is written anew."""
    try:
        found: Any = json.loads(body or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _totals(document: Mapping[str, Any]) -> FeedTotals:
    partitions = document["partitions"]
    return FeedTotals(
        partitions=len(partitions),
        rows=document["total_records"],
        files=sum(each["files"] for each in partitions),
        small_files=sum(each["small_files"] for each in partitions),
        size_bytes=round(document["total_size_mb"] * _MB),
    )

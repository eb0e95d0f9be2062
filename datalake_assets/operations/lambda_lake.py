"""What the Lambda functions of feeds keep for the life of their process: the lake, and for a while its feeds."""

from __future__ import annotations

import time

from datalake_assets.feed import Feed
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3_access import CatalogAccess, S3Access
from datalake_assets.settings import Settings

__all__ = ["LambdaLake"]

#: Seconds for which the list of feeds is kept: an invocation need not read all of them.
KEPT_S = 60.0


class LambdaLake:
    """The lake of an installation.

    Args:
        settings: The installation's.

    Attributes:
        store: The lake's store.
    """

    def __init__(self, settings: Settings) -> None:
        s3, catalog = S3Access(endpoint=settings.s3_endpoint), CatalogAccess.of(settings)
        self.store: Store = open_store(settings.lake, s3=s3, catalog=catalog)
        self._feeds: tuple[Feed, ...] = ()
        self._read_at = -KEPT_S

    def feeds(self, *, anew: bool = False) -> tuple[Feed, ...]:
        """All active feeds, as they were a minute ago at the most; or as they are now."""
        if anew or time.monotonic() - self._read_at >= KEPT_S:
            self._feeds, self._read_at = FeedRegistry(self.store).list().feeds, time.monotonic()
        return self._feeds

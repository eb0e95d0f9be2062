"""A follower that is killed, or ends after a while, as `datalake run` would."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from datalake_assets.continuous.following import Following, Landed
from datalake_assets.errors import DatalakeError
from datalake_assets.lake.store.base import Store
from datalake_assets.sources.base import SourceSystem
from datalake_assets_tests.crash.checks import CrashError

__all__ = ["follow_for"]


def follow_for(
    seconds: float, feed: str, store: Store, connect: Callable[[], AbstractContextManager[SourceSystem]]
) -> None:
    """Follows a feed for a while; a failure is tried again, as when another export came first."""
    with Following(lambda: store, connect=lambda _: connect(), log=_Log()) as following:
        following.follow(feed)
        time.sleep(seconds)
        following.check()


class _Log:
    """Implements `FollowingLog`."""

    def landed(self, landed: Landed) -> None: ...
    def failed(self, feed: str, error: DatalakeError, *, again_in_s: float) -> None: ...
    def gone(self, feed: str, reason: str) -> None:
        raise CrashError(f"{feed} is gone: {reason}")

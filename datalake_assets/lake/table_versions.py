"""Versions of a table: entered into the feed's state once they are committed, and removed by retention.

Both are also what a repair does, which need not load how rows are landed.
"""

from __future__ import annotations

from datalake_assets.core.feed_state import Version
from datalake_assets.core.manifest import Manifest
from datalake_assets.core.partitions import version_key, version_number
from datalake_assets.core.position import SnapshotPosition
from datalake_assets.errors import ConfigError
from datalake_assets.feed import Feed
from datalake_assets.lake.commit import Change, Planned
from datalake_assets.lake.layout import FeedFolder

__all__ = ["enter_version", "removed_by_retention", "retain"]


def removed_by_retention(feed: Feed, key: str) -> ConfigError:
    """The error for an export of a version that is gone."""
    return ConfigError(f"{key} of table {feed.name!r} was removed by retention")


def enter_version(folder: FeedFolder, key: str, manifest: Manifest) -> None:
    """Enters a committed version into the feed's state, unless it is there or was removed; idempotent."""
    if isinstance(manifest.position, SnapshotPosition) and not manifest.deleted:
        version = Version(version_number(key), manifest.position.as_of, manifest.position.rows)
        folder.state.change(lambda now: now.with_version(version))


def retain(folder: FeedFolder, *, run_id: str = "") -> list[str]:
    """Removes the versions beyond retention, the state's line first, and finishes removals that were interrupted.

    Returns:
        The removed partition keys.
    """
    rule, now = folder.feed.retention, folder.store.now()
    state = folder.state.change(lambda each: each.retained(versions=rule.versions, max_age=rule.max_age, now=now))
    return [_remove_version(folder, number, run_id=run_id) for number in state.removing]


def _remove_version(folder: FeedFolder, number: int, *, run_id: str) -> str:
    """Deletes the files of a version that the feed's state lists as being removed; idempotent. Returns its key."""
    key = version_key(number)

    def plan(base: Manifest) -> Planned | None:
        if base.deleted:
            return None
        return Planned(remove=tuple(file.name for file in base.files), deleted=True)

    folder.log(key).commit(Change(folder.new_id(), "delete", (), plan, run_id))
    folder.state.change(lambda now: now.without_removed(number))
    return key

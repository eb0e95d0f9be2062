"""Feeds that are declared in code: the registry follows what an asset of somebody's project says of itself."""

from __future__ import annotations

from typing import Any

from datalake_assets.errors import ConfigError, FeedExists, FeedNotFound, PreconditionFailed
from datalake_assets.feed import Feed, FolderSource
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.swap import retried

__all__ = ["declare", "registered"]

#: Attempts at one declaration; each lost one means that another run declared the same feed.
ATTEMPTS = 5


def declare(store: Store, declared: Feed) -> Feed:
    """Registers a feed, or brings its registration in line with the declaration; a folder is adopted at first.

    Only the fields that were set are declared: what else a registered feed has, it keeps.

    Args:
        store: The lake.
        declared: The feed; its source names the asset.

    Returns:
        The feed as it is registered.

    Raises:
        ConfigError: The name is another feed's, the feed is archived, what is for life would change, or a folder
            cannot be adopted.
        LakeError: The registry cannot be read or written.
    """
    registry = FeedRegistry(store)
    return retried(lambda: _declare(store, registry, declared), attempts=ATTEMPTS, on=(FeedExists, PreconditionFailed))


def registered(store: Store, declared: Feed) -> Feed | None:
    """Like `declare`, but a feed that no asset has written to yet is left alone: None then. Folders are adopted."""
    try:
        FeedRegistry(store).get(declared.name)
    except FeedNotFound as error:
        if error.archived:
            raise
        if not declared.is_adopted:
            return None
    return declare(store, declared)


def _declare(store: Store, registry: FeedRegistry, declared: Feed) -> Feed:
    try:
        known = registry.get(declared.name)
    except FeedNotFound as error:
        if error.archived:
            raise
        known = _register(store, registry, declared)
    _refuse_other(known, declared)
    wanted = known.model_copy(update=_declared_fields(declared, known))
    return known if wanted == known else registry.update(wanted, expected_revision=known.revision)


def _register(store: Store, registry: FeedRegistry, declared: Feed) -> Feed:
    if isinstance(declared.source, FolderSource):
        return adopt(store, declared.source.uri, declared.name, time_column=declared.time_column).feed
    return registry.add(declared)


def _declared_fields(declared: Feed, known: Feed) -> dict[str, Any]:
    fields = {name: getattr(declared, name) for name in declared.model_fields_set - {"name", "revision", "enabled"}}
    if "checks" in fields:  # its limits are declared one by one; rules may have been added by hand
        limits = {name: getattr(declared.checks, name) for name in declared.checks.model_fields_set}
        fields["checks"] = known.checks.model_copy(update=limits)
    return fields


def _refuse_other(known: Feed, declared: Feed) -> None:
    """A folder may have been adopted by hand before an asset stood for it; nothing else changes hands."""
    by_hand = known.is_adopted and declared.is_adopted and known.asset is None
    if by_hand and known.source.where == declared.source.where:
        return
    if known.source.type == declared.source.type and known.asset == declared.asset:
        return
    whose = f"of asset {known.asset!r}" if known.asset else f"of {known.source.type} {known.source.where!r}"
    raise ConfigError(
        f"asset {declared.asset!r}: the lake's feed {declared.name!r} is that {whose}; give the asset another name"
        " in the lake by its metadata 'datalake/feed'"
    )

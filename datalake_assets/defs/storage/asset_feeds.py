"""Feeds that are declared in code: which feed an asset of somebody's project is, and the registry, which follows it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, TypeAlias

import dagster as dg

from datalake_assets.core.partitions import PartitionBy
from datalake_assets.errors import ConfigError, FeedExists, FeedNotFound, PreconditionFailed
from datalake_assets.feed import NAME_PATTERN, Feed, contradiction, parse_feed
from datalake_assets.feed_sources import FeedKind, FolderSource
from datalake_assets.lake.adopted.adoption import adopt
from datalake_assets.lake.registry import FeedRegistry
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.swap import retried

__all__ = [
    "DECLARABLE",
    "AssetLike",
    "DeclaredAsset",
    "declare",
    "declared_assets",
    "declared_feed",
    "declared_name",
    "registered",
]

AssetLike: TypeAlias = dg.AssetsDefinition | dg.AssetSpec

_PREFIX = "datalake/"
_NAME = "datalake/feed"
_URI = "dagster/uri"
#: Fields of a feed that an asset's metadata can set, as ``datalake/<field>``.
DECLARABLE = (
    "time_column",
    "schema_policy",
    "start",
    "format",
    "retention",
    "freshness",
    "compaction",
    "small_file_bytes",
    "lateness",
    "description",
)
#: What goes back to its default when it is no longer in the metadata; other fields can be set by hand as well.
_OWNED: Mapping[str, Any] = {"time_column": None, "schema_policy": "freeze"}
_CRON = {"0 0 1 * *": PartitionBy.MONTH, "0 0 * * *": PartitionBy.DAY, "0 * * * *": PartitionBy.HOUR}
_UTC = {"UTC", "Etc/UTC"}


@dataclass(frozen=True, slots=True)
class DeclaredAsset:
    """An asset and the feed that it declares.

    Attributes:
        spec: The asset.
        feed: The feed; only what was declared is set.
    """

    spec: dg.AssetSpec
    feed: Feed


def declared_assets(assets: Iterable[AssetLike], **more: object) -> list[DeclaredAsset]:
    """The assets of definitions, one by one, with their feeds.

    Args:
        assets: Definitions of assets, or mere specifications.
        more: Further fields of all feeds; None leaves one as it is registered.

    Raises:
        ConfigError: One cannot be a feed, or two would be the same.
    """
    specs = [spec for each in assets for spec in _specs_of(each)]
    chosen = {field: value for field, value in more.items() if value is not None}
    found = [DeclaredAsset(spec, declared_feed(spec, **chosen)) for spec in specs]
    owners: dict[str, DeclaredAsset] = {}
    for one in found:
        other = owners.setdefault(one.feed.name, one)
        if other.spec.key != one.spec.key:
            both = f"assets {other.feed.asset!r} and {one.feed.asset!r} would both be feed {one.feed.name!r}"
            raise ConfigError(f"{both}; give one of them another name by its metadata {_NAME!r}")
    return list(owners.values())


def _specs_of(asset: AssetLike) -> Iterable[dg.AssetSpec]:
    if isinstance(asset, dg.AssetSpec):
        return [asset]
    if isinstance(asset, dg.AssetsDefinition):
        return asset.specs
    raise ConfigError(f"{asset!r} is no asset; give what @dg.asset or @dg.multi_asset made, or a dg.AssetSpec")


def declared_feed(spec: dg.AssetSpec, **more: object) -> Feed:
    """The feed that an asset declares; only what it declares is set (``model_fields_set``).

    Args:
        spec: The asset.
        more: Further fields, like a compaction policy.

    Raises:
        ConfigError: It cannot be a feed: its name, its partitions or its metadata.
    """
    name, declared = declared_name(spec.key, spec.metadata), _declared(spec)
    if _URI in spec.metadata:
        fields = _folder(spec, declared)
    else:
        source = {"type": "asset", "asset": _key(spec)}
        fields = {"source": source, **_OWNED, **_partitioned(spec), **declared}
    document = {"name": name, **fields, **{field: _plain(value) for field, value in more.items()}}
    feed = parse_feed(json.dumps(document), name=name)
    if problem := contradiction(feed):
        raise ConfigError(f"asset {_key(spec)!r}: {problem}")
    return feed


def declared_name(key: dg.AssetKey, metadata: Mapping[str, Any]) -> str:
    """The name of an asset's feed: the metadata ``datalake/feed``, or the key's parts joined by two underscores.

    Raises:
        ConfigError: It is no name for a feed.
    """
    name = str(_plain(metadata.get(_NAME, "__".join(key.path))))
    if not NAME_PATTERN.fullmatch(name):
        asset = key.to_user_string()
        raise ConfigError(
            f"asset {asset!r}: {name!r} cannot be the name of a feed, which matches {NAME_PATTERN.pattern};"
            f" give it one by its metadata {_NAME!r}"
        )
    return name


def _key(spec: dg.AssetSpec) -> str:
    if any("/" in part for part in spec.key.path):
        raise ConfigError(f"asset {list(spec.key.path)}: a part of its key has a '/' in it; give it a key without")
    return spec.key.to_user_string()


def _folder(spec: dg.AssetSpec, declared: Mapping[str, Any]) -> dict[str, Any]:
    from datalake_assets.lake.layout import parse_address  # noqa: PLC0415  definitions load without stores

    uri = parse_address(str(_plain(spec.metadata[_URI]))).uri
    return {"kind": FeedKind.FOLDER, "source": {"type": "folder", "uri": uri, "asset": _key(spec)}, **declared}


def _declared(spec: dg.AssetSpec) -> dict[str, Any]:
    """Fields that the metadata sets. A name that is none of ours is an error, not a setting without effect."""
    found = {}
    for name, value in spec.metadata.items():
        field = name.removeprefix(_PREFIX)
        if name in {field, _NAME}:
            continue
        if field not in DECLARABLE:
            known = ", ".join(f"'{_PREFIX}{each}'" for each in ("feed", *DECLARABLE))
            raise ConfigError(f"asset {_key(spec)!r}: there is no metadata {name!r}; there are {known}")
        found[field] = _plain(value)
    return found


def _plain(value: object) -> Any:
    """The value of a piece of metadata, or of a model, as JSON has it."""
    value = getattr(value, "value", value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", exclude_unset=True)
    return value.isoformat() if isinstance(value, date) else value


def _partitioned(spec: dg.AssetSpec) -> dict[str, Any]:
    partitions = spec.partitions_def
    if partitions is None:
        return {"kind": FeedKind.TABLE}
    by = _partition_by(partitions)
    if not isinstance(partitions, dg.TimeWindowPartitionsDefinition) or by is None:
        raise ConfigError(
            f"asset {_key(spec)!r}: its partitions are not those of a stream, which are whole months, days or hours in"
            f" UTC; they are {_described(partitions)}"
        )
    if partitions.fmt != by.key_format:
        raise ConfigError(
            f"asset {_key(spec)!r}: its partition keys are written {partitions.fmt!r}, and those of the lake"
            f" {by.key_format!r}; give its partitions fmt={by.key_format!r}"
        )
    return {"kind": FeedKind.STREAM, "partition_by": by.value, "start": partitions.start.date().isoformat()}


def _partition_by(partitions: dg.PartitionsDefinition[Any]) -> PartitionBy | None:
    if not isinstance(partitions, dg.TimeWindowPartitionsDefinition) or partitions.timezone not in _UTC:
        return None
    return _CRON.get(partitions.cron_schedule)


def _described(partitions: dg.PartitionsDefinition[Any]) -> str:
    if isinstance(partitions, dg.TimeWindowPartitionsDefinition):
        return f"{partitions.cron_schedule!r} in {partitions.timezone}"
    return type(partitions).__name__


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

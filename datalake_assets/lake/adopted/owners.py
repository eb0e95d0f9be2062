"""The owner's marker beside an adopted folder: two lakes never replace the files of one.

``<parent>/.datalake-owner-<folder>.json`` is created only if nothing is there. It lies beside the folder, not in it:
readers of the folder never meet it, and those of the parent pass it over, for it is hidden and not named like Parquet.
It names the lake by a random id, kept in the lake's ``control/lake.json``: two machines may have lakes of one path.
Which of several copies of one lake it belongs to, `datalake_assets.lake.adopted.claims` knows.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from datalake_assets.errors import (
    AmbiguousWrite,
    CorruptLake,
    FolderTaken,
    LakeUnavailable,
    PreconditionFailed,
)
from datalake_assets.feed import Feed
from datalake_assets.lake.adopted.claims import Claim, marker_document, read_marker
from datalake_assets.lake.layout import (
    MARKER,
    FeedFolder,
    FolderAddress,
    address_of,
    folder_store,
    marker_key,
    new_id,
)
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.swap import change_object

__all__ = ["check_ownership", "lake_id", "release_ownership", "take_ownership"]

logger = logging.getLogger(__name__)

LAKE_KEY = "control/lake.json"
_FORMAT = 1


def lake_id(lake: Store) -> str:
    """The lake's random name, given to it when it is first asked for."""

    def named(body: bytes | None) -> bytes | None:
        return None if body else json.dumps({"format": _FORMAT, "id": new_id() + new_id()}).encode()

    return _id_in(change_object(lake, LAKE_KEY, named) or b"", lake.uri)


def _id_in(body: bytes, where: str) -> str:
    try:
        return str(json.loads(body)["id"])
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptLake(f"{where}/{LAKE_KEY}", f"it does not name the lake: {error!r}") from error


def take_ownership(lake: Store, feed: Feed) -> bool:
    """Makes a folder this lake's and this feed's; again is no change.

    Returns:
        Whether it was taken just now.

    Raises:
        FolderTaken: It is another's, or a folder above or below it is.
        LakeError: The marker cannot be written beside it.
    """
    address, claim = address_of(feed), FeedFolder(lake, feed).claim
    store = claim.beside
    mine = {"format": _FORMAT, "lake_id": lake_id(lake), "lake": lake.uri, "feed": feed.name}
    _check(_owner(store, address), mine, claim)
    _check_around(lake, address)  # before anything is written, which might be into another's folder
    created = _owner(store, address) is None and _create(store, address, mine, claim)
    _check(_owner(store, address), mine, claim)
    try:
        # and once more: of two who take overlapping folders at once, at least one sees the other
        _check_around(lake, address)
    except FolderTaken:
        if created:
            _remove(store, address)
            lake.delete([claim.record])
        raise
    return created


def _remove(store: Store, address: FolderAddress) -> None:
    store.delete([marker_key(address.name)])
    store.tidy()


def _check_around(lake: Store, address: FolderAddress) -> None:
    for other, owner in _around(lake, address):
        if owner is not None:
            raise _taken(owner, other)


def _create(store: Store, address: FolderAddress, mine: Mapping[str, Any], claim: Claim) -> bool:
    """Whether it was created; if not, the caller reads what is there instead."""
    body = marker_document({**mine, "claim": claim.proposed(None)})
    try:
        store.probe()
        store.create(marker_key(address.name), body)
    except (PreconditionFailed, AmbiguousWrite) as error:
        logger.debug("%s may have an owner: %s", address.uri, error)
        return False
    except LakeUnavailable as error:
        cure = f"give this user write access to {address.root}, where files are staged too"
        raise LakeUnavailable(
            address.uri, f"its owner's marker cannot be written beside it: {error.reason}", cure=cure
        ) from error
    return True


def check_ownership(lake: Store, feed: Feed) -> None:
    """Raises `FolderTaken` unless a folder is this lake's and this feed's."""
    claim = FeedFolder(lake, feed).claim
    _check(claim.owner(), {"lake_id": lake_id(lake), "feed": feed.name}, claim)


def release_ownership(lake: Store, feed: Feed) -> None:
    """Gives a folder free if it is this lake's and this feed's; idempotent."""
    address, claim = address_of(feed), FeedFolder(lake, feed).claim
    owner = _owner(claim.beside, address)
    if owner is None or (owner.get("lake_id"), owner.get("feed")) != (lake_id(lake), feed.name):
        return
    claim.renew()
    _remove(claim.beside, address)


def _owner(store: Store, address: FolderAddress) -> Mapping[str, Any] | None:
    """What a folder's marker says; None if there is none."""
    return _read(store, marker_key(address.name))


def _read(store: Store, key: str) -> Mapping[str, Any] | None:
    found = read_marker(store, key)
    return found[0] if found is not None else None


def _check(owner: Mapping[str, Any] | None, mine: Mapping[str, Any], claim: Claim) -> None:
    """Raises `FolderTaken` if a marker names another lake, another feed, or another copy of this lake."""
    if owner is None:
        return
    if (owner.get("lake_id"), owner.get("feed")) != (mine["lake_id"], mine["feed"]):
        root, _, name = claim.uri.rpartition("/")
        raise _taken(owner, FolderAddress(root or "/", name))
    claim.check(owner)


def _taken(owner: Mapping[str, Any], address: FolderAddress) -> FolderTaken:
    whose = f"feed {owner.get('feed')!r} of the lake {owner.get('lake')}"
    marker = f"{address.root.rstrip('/')}/{marker_key(address.name)}"
    cure = f"archive that feed first; if it is no more, delete {marker}"
    return FolderTaken(address.uri, f"it is kept in order by {whose}", cure=cure)


def _around(lake: Store, address: FolderAddress) -> Iterator[tuple[FolderAddress, Mapping[str, Any] | None]]:
    """The folders above and below that may have owners, with what their markers say."""
    bucket, _, _ = address.root.removeprefix("s3://").partition("/")
    top = f"s3://{bucket}" if address.root.startswith("s3://") else "/"
    parts = [part for part in address.root.removeprefix(top).split("/") if part]
    above = folder_store(lake, top) if parts else None
    for depth in range(len(parts)):
        folder = FolderAddress(f"{top.rstrip('/')}/{'/'.join(parts[:depth])}".rstrip("/") or "/", parts[depth])
        with contextlib.suppress(LakeUnavailable):  # what we may not see there, we cannot respect
            yield folder, _read(above, "/".join((*parts[:depth], marker_key(parts[depth])))) if above else None
    store = folder_store(lake, address.root)
    for key in store.keys(address.name):
        below, _, name = key.rpartition("/")
        if name.startswith(MARKER) and name.endswith(".json"):
            folder = FolderAddress(f"{address.root.rstrip('/')}/{below}", name[len(MARKER) : -len(".json")])
            yield folder, _read(store, key)

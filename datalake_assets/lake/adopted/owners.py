"""The owner's marker beside an adopted folder: two lakes never replace the files of one.

``<parent>/.datalake-owner-<folder>.json`` is created only if nothing is there. It lies beside the folder, not in it:
readers of the folder never meet it, and those of the parent pass it over, for it is hidden and not named like Parquet.
It names the lake by a random id, kept in the lake's ``control/lake.json``: two machines may have lakes of one path.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from datalake_assets.errors import (
    AmbiguousWrite,
    CorruptLake,
    FolderTaken,
    LakeUnavailable,
    ObjectNotFound,
    PreconditionFailed,
)
from datalake_assets.feed import Feed
from datalake_assets.lake.layout import FolderAddress, address_of, folder_store, new_id
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.swap import change_object

__all__ = ["MARKER", "check_ownership", "lake_id", "marker_key", "release_ownership", "take_ownership"]

logger = logging.getLogger(__name__)

MARKER = ".datalake-owner-"
LAKE_KEY = "control/lake.json"
_FORMAT = 1
NAME_MAX_BYTES = 255  # of one file, on disks


def marker_key(name: str) -> str:
    """Where the marker of a folder lies, relative to the folder's parent; a name that is too long, by its digest."""
    if len(f"{MARKER}{name}.json".encode()) > NAME_MAX_BYTES:
        name = hashlib.blake2b(name.encode(), digest_size=16).hexdigest()
    return f"{MARKER}{name}.json"


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
    address = address_of(feed)
    store = folder_store(lake, address.root)
    mine = {"format": _FORMAT, "lake_id": lake_id(lake), "lake": lake.uri, "feed": feed.name}
    _check(_owner(store, address), mine, address)
    _check_around(lake, address, mine)  # before anything is written, which might be into another's folder
    created = _create(store, address, mine)
    _check(_owner(store, address), mine, address)
    try:
        # and once more: of two who take overlapping folders at once, at least one sees the other
        _check_around(lake, address, mine)
    except FolderTaken:
        if created:
            _remove(store, address)
        raise
    return created


def _remove(store: Store, address: FolderAddress) -> None:
    store.delete([marker_key(address.name)])
    store.tidy()


def _check_around(lake: Store, address: FolderAddress, mine: Mapping[str, Any]) -> None:
    for other, owner in _around(lake, address):
        _check(owner, {**mine, "feed": None}, other)


def _create(store: Store, address: FolderAddress, mine: Mapping[str, Any]) -> bool:
    """Whether it was created; if not, the caller reads what is there instead."""
    try:
        store.probe()
        store.create(marker_key(address.name), json.dumps(mine, indent=1).encode() + b"\n")
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
    address = address_of(feed)
    owner = _owner(folder_store(lake, address.root), address)
    if owner is None:
        cure = f"adopt it again with 'datalake adopt {address.uri} --name {feed.name}'"
        raise FolderTaken(address.uri, "its owner's marker is gone", cure=cure)
    _check(owner, {"lake_id": lake_id(lake), "feed": feed.name}, address)


def release_ownership(lake: Store, feed: Feed) -> None:
    """Gives a folder free if it is this lake's and this feed's; idempotent."""
    address = address_of(feed)
    store = folder_store(lake, address.root)
    owner = _owner(store, address)
    if owner is not None and (owner.get("lake_id"), owner.get("feed")) == (lake_id(lake), feed.name):
        _remove(store, address)


def _owner(store: Store, address: FolderAddress) -> Mapping[str, Any] | None:
    """What a folder's marker says; None if there is none."""
    return _read(store, marker_key(address.name))


def _read(store: Store, key: str) -> Mapping[str, Any] | None:
    try:
        body, _ = store.get(key)
    except ObjectNotFound:
        return None
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CorruptLake(f"{store.uri}/{key}", "it is not an owner's marker", cure="look at it, then delete it")
    return found


def _check(owner: Mapping[str, Any] | None, mine: Mapping[str, Any], address: FolderAddress) -> None:
    if owner is None or (owner.get("lake_id"), owner.get("feed")) == (mine["lake_id"], mine["feed"]):
        return
    whose = f"feed {owner.get('feed')!r} of the lake {owner.get('lake')}"
    marker = f"{address.root.rstrip('/')}/{marker_key(address.name)}"
    cure = f"archive that feed first; if it is no more, delete {marker}"
    raise FolderTaken(address.uri, f"it is kept in order by {whose}", cure=cure)


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
    for info in store.list(address.name):
        below, _, name = info.key.rpartition("/")
        if name.startswith(MARKER) and name.endswith(".json"):
            folder = FolderAddress(f"{address.root.rstrip('/')}/{below}", name[len(MARKER) : -len(".json")])
            yield folder, _read(store, info.key)

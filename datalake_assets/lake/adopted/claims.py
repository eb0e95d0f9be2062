"""Of two copies of one lake, one keeps an adopted folder: whoever is about to change it renews its claim first.

A lake that was copied with its ``control`` has the same id, so that the owner's marker beside a folder names both. Both
would merge the same files, and rows would be there twice. Addresses do not tell them apart: a lake is moved, mounted
elsewhere, reached by links and by other names of its server, and two machines may have copies of one path.

So the marker has a claim, a random text, and the lake keeps a record of it. Before each commit the claim is renewed:
the lake writes down the next one beside the present one, then swaps it into the marker. The copy has only the old one,
and is refused from then on. Whoever dies in between has both texts written down, and either is its own.

That gives the folder to the copy that is first to change it. Where the lake that the marker names is still at its
address, it has the right of way: a copy says so at once.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from datalake_assets.core.values import Value
from datalake_assets.errors import (
    ConfigError,
    CorruptLake,
    FolderTaken,
    LakeUnavailable,
    ObjectNotFound,
    PreconditionFailed,
)
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.swap import change_object, known_object, swap_object

__all__ = ["RECORD", "Claim", "marker_document", "read_marker"]

#: Name of the record, among a feed's control files.
RECORD = "owner.json"
#: Times that a marker is looked at which other processes of this lake keep changing.
ATTEMPTS = 20


#: Claims that are kept: several processes may begin to adopt a folder at once, each with its own.
KEPT = 8


class _Record(msgspec.Struct, frozen=True):
    """What a lake knows of its claim: what the marker may have, the newest last."""

    format: int = 1
    claims: tuple[str, ...] = ()


class Claim(Value, frozen=True):
    """A lake's claim to an adopted folder.

    Attributes:
        lake: The lake.
        record: Key of its record there.
        beside: The store of the folder's parent.
        marker: Key of the marker there.
        uri: The folder, for messages.
        feed: The feed's name.
        new_id: Gives a fresh unique text at every call.
        open_lake: Opens a lake at an address that a marker names.
    """

    lake: Store
    record: str
    beside: Store
    marker: str
    uri: str
    feed: str
    new_id: Callable[[], str]
    open_lake: Callable[[str], Store]

    def owner(self) -> Mapping[str, Any]:
        """What the folder's marker says.

        Raises:
            FolderTaken: It is gone.
        """
        return self._marked()[0]

    def check(self, owner: Mapping[str, Any]) -> None:
        """Raises `FolderTaken` if a marker that names this lake has the claim of another copy of it."""
        for _ in range(ATTEMPTS):
            if self._has_one_of(owner, self._claims()):
                return
            again = self.owner()
            if again.get("claim") == owner.get("claim"):  # and not one that another process has just renewed
                break
            owner = again
        raise self._taken(owner)

    def renew(self) -> None:
        """Makes the folder this copy's; to be called before a commit is prepared, or one that was found is finished.

        Raises:
            FolderTaken: It is another copy's, or the marker is gone.
        """
        for _ in range(ATTEMPTS):
            owner, etag = self._marked()
            self.check(owner)
            fresh = self.proposed(str(owner.get("claim", "")))
            if not fresh:
                continue
            self._check_address(owner, fresh)
            body = marker_document({**owner, "lake": self.lake.uri, "claim": fresh})
            with contextlib.suppress(PreconditionFailed):  # another process of this lake renewed it, or another copy
                swap_object(self.beside, self.marker, body, etag=etag)
                return
        raise PreconditionFailed(f"{self.beside.uri}/{self.marker}", "other processes keep changing it")

    def proposed(self, now: str | None) -> str:
        """The next claim, written down before it is in the marker.

        Args:
            now: The marker's; None if it is still to be made.

        Returns:
            The claim; empty if the record does not have the present one any more.
        """
        fresh = self.new_id() + self.new_id()

        def rule(body: bytes | None) -> bytes | None:
            claims = _record(body, self.record).claims or ("",)
            # another process may be about to renew it: with the same claim it does not matter who does
            return _written((*claims, fresh)) if now in {None, claims[-1]} else None

        claims = _record(change_object(self.lake, self.record, rule), self.record).claims
        return claims[-1] if now is None or now in claims[:-1] else ""

    def _check_address(self, owner: Mapping[str, Any], fresh: str) -> None:
        """A lake at the marker's address has the right of way, unless it is this very lake under another name."""
        address = str(owner.get("lake", ""))
        if not address or address == self.lake.uri:
            return
        try:
            known = known_object(self.open_lake(address), self.record)
        except (ConfigError, LakeUnavailable):  # it has moved, or cannot be seen from here
            return
        if known.body is None:
            return
        claims = _record(known.body, self.record).claims
        if self._has_one_of(owner, claims) and fresh not in claims:
            raise self._taken(owner)

    def _claims(self) -> tuple[str, ...]:
        return _record(known_object(self.lake, self.record).body, self.record).claims

    @staticmethod
    def _has_one_of(owner: Mapping[str, Any], claims: tuple[str, ...]) -> bool:
        return owner.get("claim", "") in (claims or ("",))

    def _marked(self) -> tuple[Mapping[str, Any], str]:
        found = read_marker(self.beside, self.marker)
        if found is None:
            cure = f"adopt it again with 'datalake adopt {self.uri} --name {self.feed}'"
            raise FolderTaken(self.uri, "its owner's marker is gone", cure=cure)
        return found

    def _taken(self, owner: Mapping[str, Any]) -> FolderTaken:
        give = (
            f"delete {self.beside.uri.rstrip('/')}/{self.marker} and run 'datalake adopt {self.uri} --name {self.feed}'"
        )
        if owner.get("lake") == self.lake.uri:  # it is no news to anybody that this lake is at this address
            reason = "it was changed since by a newer copy of this lake, and this one was restored from a backup"
            return FolderTaken(self.uri, reason, cure=f"if no other copy keeps it in order, {give}")
        return FolderTaken(
            self.uri,
            f"it is kept in order by another copy of this lake, {owner.get('lake')}",
            cure=f"leave it to that one, and archive the feed here; or, to give it to this one, {give}",
        )


def read_marker(store: Store, key: str) -> tuple[Mapping[str, Any], str] | None:
    """What a marker says, and its ETag; None if there is none."""
    try:
        body, etag = store.get(key)
    except ObjectNotFound:
        return None
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise CorruptLake(f"{store.uri}/{key}", "it is not an owner's marker", cure="look at it, then delete it")
    return found, etag


def _record(body: bytes | None, where: str) -> _Record:
    if body is None:
        return _Record()
    try:
        return msgspec.json.decode(body, type=_Record)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CorruptLake(where, f"not a record of a claim: {error}") from error


def _written(claims: tuple[str, ...]) -> bytes:
    return msgspec.json.encode(_Record(claims=claims[-KEPT:]))


def marker_document(owner: Mapping[str, Any]) -> bytes:
    """A marker's bytes."""
    return json.dumps(owner, indent=1).encode() + b"\n"

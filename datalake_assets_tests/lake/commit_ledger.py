"""What should be true of a partition, followed from one manifest to the next."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from functools import lru_cache

from datalake_assets.core.manifest import Manifest, Pending
from datalake_assets.core.position import OffsetsPosition, WindowPosition
from datalake_assets_tests.lake.simulated_store import SimulatedStore

__all__ = ["FOLDER", "MANIFEST", "Broken", "Ledger", "Rows", "require", "rows_in"]

FOLDER = "streams/orders/year=2025/month=01/day=15"
MANIFEST = f"control/{FOLDER}/manifest.json"

Rows = frozenset[tuple[int, int]]


class Broken(AssertionError):
    """An invariant does not hold."""


@lru_cache(maxsize=10_000)
def rows_in(body: bytes) -> tuple[tuple[int, int], ...]:
    """The rows of a data file: (source partition, offset)."""
    return tuple((partition, offset) for partition, offset in json.loads(body))


class Ledger:
    """What should be true, followed from one manifest to the next."""

    def __init__(self) -> None:
        self.manifest = Manifest()
        self.etag = ""
        self.commits: set[str] = set()
        self.kinds: Counter[str] = Counter()
        self.floor: dict[int, int] = {}
        self.pulls: dict[datetime, Rows] = {}  # as_of -> what that pull saw
        self.emptied = True
        self.prepared_at = 0
        self.lost: set[str] = set()

    def expected(self) -> Rows:
        """The rows that the present position speaks of."""
        position = self.manifest.position
        if isinstance(position, WindowPosition):
            return frozenset() if self.emptied else self.pulls[position.as_of]
        if position is None:
            return frozenset()
        return frozenset(
            (partition, offset)
            for partition, (_, end) in position.next_offsets.items()
            for offset in range(self.floor.get(partition, 0), end)
        )

    def drop(self, token: str, how: str, asked_at: int) -> None:
        """A staged file is lost; that the pending commit's own undoing dropped it is no reason to undo it."""
        if how != "discarded" or asked_at <= self.prepared_at:
            self.lost.add(token)

    def follow(self, new: Manifest, store: SimulatedStore) -> None:
        """The manifest was written: along which edge of the state machine?"""
        old, self.manifest = self.manifest, new
        if new.generation == old.generation + 1:
            self._committed(old, new)
        elif new.pending is not None:
            require(old.pending is None and not old.garbage, "H: prepared over an unfinished commit")
            require(
                (new.generation, new.files, new.position) == (old.generation, old.files, old.position), "H: prepare"
            )
            self.kinds["prepared"] += 1
            self.prepared_at = store.operations
            self.lost = {
                publish.token
                for publish in new.pending.publish
                if publish.token not in store.staging and f"{FOLDER}/{publish.file.name}" not in store.objects
            }
        elif old.pending is not None:
            require(new == old.rolled_back().stamped(new.write_id), "H: roll back")
            tokens = {publish.token for publish in old.pending.publish}
            require(bool(tokens & self.lost), "R: a commit was undone though none of its files was lost")
            self.kinds["rolled back"] += 1
        else:
            require(new == old.swept().stamped(new.write_id), "H: sweep")
            self.kinds["swept"] += 1

    def _committed(self, old: Manifest, new: Manifest) -> None:
        pending = old.pending
        require(pending is not None and new.pending is None, "H: committed what was not pending")
        line = new.history[-1]
        kept = [file.name for file in old.files if file.name not in pending.remove]
        added = [publish.file for publish in pending.publish]
        require([file.name for file in new.files] == kept + [file.name for file in added], "H: files")
        require(new.history[:-1] == old.history[len(old.history) + 1 - len(new.history) :], "H: history")
        figures = (pending.commit_id, sum(file.rows for file in added), len(added), len(pending.remove))
        require((line.commit_id, line.rows, line.files_added, line.files_removed) == figures, "H: line of history")
        require(not _goes_back(old, new), f"H: position went back: {old.position} -> {new.position}")
        require(new.deleted == pending.deleted, "H: deleted")
        require(line.commit_id not in self.commits or pending.kind == "delete", "H: committed twice")
        self.commits.add(line.commit_id)
        self.kinds[pending.kind] += 1
        self._empty_or_fill(pending, new)

    def _empty_or_fill(self, pending: Pending, new: Manifest) -> None:
        self.emptied = pending.deleted
        if pending.deleted:
            require(not new.files, "H: a deleted partition holds files")
            if isinstance(new.position, OffsetsPosition):
                self.floor = {partition: end for partition, (_, end) in new.position.next_offsets.items()}
        elif pending.kind == "replace":
            self.floor = {}


def require(condition: bool, what: str) -> None:  # noqa: FBT001
    if not condition:
        raise Broken(what)


def _goes_back(old: Manifest, new: Manifest) -> bool:
    before, after = old.position, new.position
    if before is None:
        return False
    if isinstance(before, WindowPosition):
        return not isinstance(after, WindowPosition) or after.as_of < before.as_of
    return not isinstance(after, OffsetsPosition) or any(
        after.next_offsets.get(partition, (0, 0)) < at for partition, at in before.next_offsets.items()
    )

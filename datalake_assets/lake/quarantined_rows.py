"""Rows that could not be landed as they came, beside the tables: the same JSON lines, whatever table they belong to.

Those in quarantine are not in the lake, and wait. Those that were landed without values that did not fit the feed's
contract are kept apart from them, as they came: a row in quarantine is a hole in its partition, and these are none.

One object holds many lines, each a `QuarantinedRow`; its name begins with a digest of its content, and an export's has
no more, so that a repeated write of the same rows adds nothing.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from datalake_assets.core.batches import RejectedRow
from datalake_assets.core.partitions import UNKNOWN_PARTITION
from datalake_assets.core.row_texts import QuarantinedRow
from datalake_assets.errors import ObjectNotFound
from datalake_assets.lake.layout import new_id
from datalake_assets.lake.store.base import Store

__all__ = ["Quarantine", "Reason", "quarantine_objects", "quarantined_rows", "reasons", "take_out", "write_lines"]

#: Bytes of lines held before they are written.
FLUSH_BYTES = 1 << 20


class Quarantine:
    """Collects rows of one write that are not landed as they came; what it was given is durable after `flush`.

    Args:
        store: The lake.
        folder: Where in it: `quarantine_folder` of their feed, or `discarded_folder`.
    """

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder
        self._lines: dict[str, list[bytes]] = defaultdict(list)
        self._held_bytes = 0
        self.rows = 0

    def add(
        self, rows: Iterable[RejectedRow], *, partition_path: str = UNKNOWN_PARTITION, epoch: int | None = None
    ) -> None:
        """Takes rows whose partition is known by its Hive path, or isn't known."""
        for row in rows:
            line = QuarantinedRow.of(row, epoch=epoch).to_line()
            self._lines[partition_path].append(line)
            self._held_bytes += len(line)
            self.rows += 1
        if self._held_bytes >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what is held; call it before the commit that passes over the rows."""
        for path, lines in self._lines.items():
            write_lines(self._store, f"{self._folder}/{path}", lines)
        self._lines.clear()
        self._held_bytes = 0


def write_lines(store: Store, folder: str, lines: Iterable[bytes], *, apart: str = "") -> str:
    """Writes lines as one object, and returns its key; ``apart`` tells it from others of the same lines."""
    body = b"\n".join(lines) + b"\n"
    key = f"{folder}/{hashlib.blake2b(body, digest_size=12).hexdigest()}{apart}.jsonl"
    store.put(key, body)
    return key


def take_out(store: Store, folder: str, is_gone: Callable[[str, Sequence[QuarantinedRow]], Sequence[bool]]) -> None:
    """Writes objects anew without some of their lines; the new one first, so that no other line is ever lost.

    Several may do so at once. Whoever finds afterwards that an object was replaced by somebody else withdraws what it
    wrote, since the other's has these lines, and all look again until there is nothing to take out: whoever writes
    what another one has looked for comes after the deletion of the object, and sees that.

    Args:
        store: The lake.
        folder: Where they are.
        is_gone: Tells of the rows of an object, by the path of their partition, which go.
    """
    while _replaced(store, folder, is_gone):
        pass


def _replaced(store: Store, folder: str, is_gone: Callable[[str, Sequence[QuarantinedRow]], Sequence[bool]]) -> bool:
    """Looks once at all objects; whether one of them had lines to take out."""
    found = False
    for key, path, rows in quarantine_objects(store, folder):
        kept = [row for row, gone in zip(rows, is_gone(path, rows), strict=True) if not gone]
        if len(kept) == len(rows):
            continue
        found = True
        lines = [row.to_line() for row in kept]
        # of a name of its own: nobody else's lines are withdrawn with them
        written = write_lines(store, key.rpartition("/")[0], lines, apart=f"-{new_id()}") if kept else ""
        is_there = store.head(key) is not None
        store.delete([key] if is_there else [written] if written else [])
    return found


def quarantine_objects(store: Store, folder: str) -> Iterator[tuple[str, str, list[QuarantinedRow]]]:
    """Key, partition path and rows of every object in a folder, oldest first."""
    listed = sorted(store.list(folder), key=lambda info: (info.modified_at, info.key))
    for info in listed:
        if not info.key.endswith(".jsonl"):
            continue
        try:
            body = store.get(info.key)[0]
        except ObjectNotFound:  # another replay has just been
            continue
        path = info.key.removeprefix(f"{folder}/").rpartition("/")[0]
        yield info.key, path, [QuarantinedRow.from_line(line) for line in body.split(b"\n") if line]


def quarantined_rows(store: Store, folder: str) -> Iterator[tuple[str, QuarantinedRow]]:
    """All lines in a folder, with the path of their partition, oldest first; one row may have several."""
    for _, path, rows in quarantine_objects(store, folder):
        for row in rows:
            yield path, row


@dataclass(frozen=True, slots=True)
class Reason:
    """Rows that are in quarantine for one reason.

    Attributes:
        reason: The reason.
        rows: Distinct rows, by their position in the source.
        partitions: Paths of the partitions that they belong to; ``_unknown`` where that is not known.
        example: One of them.
    """

    reason: str
    rows: int
    partitions: tuple[str, ...]
    example: QuarantinedRow


def reasons(rows: Iterable[tuple[str, QuarantinedRow]]) -> list[Reason]:
    """Why rows are in quarantine, the most frequent reason first; a row counts once, by its newest line.

    Args:
        rows: As `TableReader.quarantined` gives them.
    """
    newest = {row.identity: (path, row) for path, row in rows}
    grouped: dict[str, list[tuple[str, QuarantinedRow]]] = defaultdict(list)
    for path, row in newest.values():
        grouped[row.reason].append((path, row))
    found = [
        Reason(reason, len(rows), tuple(sorted({path for path, _ in rows})), rows[0][1])
        for reason, rows in grouped.items()
    ]
    return sorted(found, key=lambda each: (-each.rows, each.reason))

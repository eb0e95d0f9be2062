"""The errors that callers can catch, in one tree.

::

    DatalakeError
    ├── ConfigError                  what a person wrote is wrong: settings, a feed, a command's arguments
    │   ├── InvalidFeed
    │   ├── FeedNotFound
    │   └── FeedExists
    ├── SourceError                  a system that we read from
    │   ├── SourceUnavailable        unreachable, timed out, 5xx: the bounded retries are used up
    │   ├── SourceRefused            the request was understood and refused: bad SQL, no such object, no access
    │   ├── IncompleteResponse       the answer ended before it said that it was complete: nothing was committed
    │   ├── SourceShrank             fewer rows than the lake already holds
    │   ├── SourceRecreated          the topic begins anew: its end is below our position
    │   ├── SourceDataLost           rows between our position and the oldest available offset are gone
    │   └── SchemaChanged            the source's schema is not the feed's frozen one
    ├── EngineError                  where rewrites run: a cluster is out of reach, or its workers cannot do the work
    └── LakeError                    the place that we write to
        ├── LakeUnavailable          no such bucket or folder, no access, disk full, read-only
        ├── UnsafeStore              the store ignores conditional writes
        ├── ObjectNotFound           no object under this key
        ├── PreconditionFailed       a conditional write lost
        ├── AmbiguousWrite           the store's answer was lost: the write may have happened, or may happen yet
        ├── TransientStoreError      the store is busy or unreachable for now: nobody may decide anything
        ├── UploadGone               a staged file is no longer there
        ├── CommitConflict           another writer won, and ours cannot be re-planned here
        ├── FolderTaken              somebody else keeps an adopted folder in order
        ├── SnapshotExpired          a file was removed while it was being read: read again
        ├── UnreadableFile           not a Parquet file that can be read: truncated, damaged, encrypted, foreign
        └── CorruptLake              what is stored contradicts itself

Every error names the culprit and the cure, and keeps the culprits as attributes. Foreign exceptions are translated
once, at the adapter that talks to the foreign system. Errors can be pickled: workers of other machines raise them too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = [
    "AmbiguousWrite",
    "CommitConflict",
    "ConfigError",
    "CorruptLake",
    "DatalakeError",
    "EngineError",
    "FeedExists",
    "FeedNotFound",
    "FolderTaken",
    "IncompleteResponse",
    "InvalidFeed",
    "LakeError",
    "LakeUnavailable",
    "ObjectNotFound",
    "PreconditionFailed",
    "SchemaChanged",
    "SnapshotExpired",
    "SourceDataLost",
    "SourceError",
    "SourceRecreated",
    "SourceRefused",
    "SourceShrank",
    "SourceUnavailable",
    "TransientStoreError",
    "UnreadableFile",
    "UnsafeStore",
    "UploadGone",
    "duckdb_interrupted",
    "unforeseen_text",
]


class DatalakeError(Exception):
    """Base of everything that this package raises on purpose; ``str()`` is one line fit for a person."""

    def __reduce__(self) -> tuple[Any, ...]:
        """What is picklable of most exceptions, and not of those that take other arguments than their text."""
        return _restored, (type(self), self.args, dict(self.__dict__))


def _restored(kind: type[DatalakeError], args: tuple[object, ...], state: Mapping[str, Any]) -> DatalakeError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


def unforeseen_text(error: BaseException) -> str:
    """The line for an error that no code foresaw, where only a part of the work is lost by it."""
    text = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}{': ' if text else ''}{text} (a bug; see where with -v)"


@contextmanager
def duckdb_interrupted() -> Iterator[None]:
    """Within it, or in a function that it decorates, a signal interrupts DuckDB as it interrupts Python.

    DuckDB's client looks for signals while it executes, and makes an error of whatever their handler raised; a run of
    Dagster's that was ended, or a command by Ctrl-C, would have failed by its query, or gone on with the next feed.

    Raises:
        KeyboardInterrupt: A signal came.
    """
    try:
        yield
    except RuntimeError as error:
        if str(error) != "Query interrupted":  # DuckDB 2.0's words; it has no class of its own for that
            raise
        raise KeyboardInterrupt from error


class ConfigError(DatalakeError):
    """Settings or arguments that cannot work."""


class InvalidFeed(ConfigError):
    """A feed's declaration is not valid."""

    def __init__(self, feed: str, reason: str) -> None:
        self.feed, self.reason = feed, reason
        super().__init__(f"feed {feed!r} is invalid: {reason}")


class FeedNotFound(ConfigError):
    """No feed of this name in the registry."""

    def __init__(self, feed: str, *, archived: bool = False) -> None:
        self.feed, self.archived = feed, archived
        cure = f"restore it with 'datalake feeds restore {feed}'" if archived else "see 'datalake feeds list'"
        super().__init__(f"feed {feed!r} {'is archived' if archived else 'does not exist'}; {cure}")


class FeedExists(ConfigError):
    """The registry already has a feed of this name."""

    def __init__(self, feed: str, *, archived: bool = False) -> None:
        self.feed, self.archived = feed, archived
        where = " in the archive" if archived else ""
        super().__init__(f"feed {feed!r} exists already{where}; choose another name, or archive or restore that one")


class SourceError(DatalakeError):
    """A source failed.

    Args:
        source: What was read, fit for a message: an URL without credentials and an object's name.
        reason: What happened.
        cure: What a person can do about it.
    """

    default_cure = "nothing was committed; run it again when the source is well"

    def __init__(self, source: str, reason: str, *, cure: str = "") -> None:
        self.source, self.reason, self.cure = source, reason, cure or self.default_cure
        super().__init__(f"{source}: {reason}; {self.cure}")


class SourceUnavailable(SourceError):
    """The source could not be reached, or stayed unable to answer, within the bounded retries."""


class SourceRefused(SourceError):
    """The source understood the request and refused it; a retry would be refused too."""

    default_cure = "correct the feed or the credentials, then run it again"


class IncompleteResponse(SourceError):
    """The source's answer broke off, or ended without the message that says it is complete."""

    default_cure = "nothing was committed; run it again"


class SourceShrank(SourceError):
    """The source has fewer rows than were landed before."""

    default_cure = "nothing was changed; if the loss is intended, run it again with --allow-shrink"


class SourceRecreated(SourceError):
    """The source's end lies before the position reached: it was deleted and created anew."""

    default_cure = "nothing was committed; to read it from its new beginning, run it again with --new-epoch"


class SourceDataLost(SourceError):
    """The oldest row that the source still has lies after the position reached."""

    default_cure = "to go on after the gap, run it again with --new-epoch"


class SchemaChanged(SourceError):
    """The source's columns differ from the feed's frozen schema."""

    default_cure = "nothing was committed; undo the change, or set the feed's schema_policy to 'evolve'"


class EngineError(DatalakeError):
    """What rewrites run on failed; what was committed stays, and the rest can be done again.

    Args:
        engine: Its name.
        reason: What happened.
        cure: What a person can do about it.
    """

    default_cure = "run it again: what was committed is kept, and nothing is doubled"

    def __init__(self, engine: str, reason: str, *, cure: str = "") -> None:
        self.engine, self.reason, self.cure = engine, reason, cure or self.default_cure
        super().__init__(f"engine {engine}: {reason}; {self.cure}")


class LakeError(DatalakeError):
    """The lake failed.

    Args:
        where: The lake's URI, or a key in it.
        reason: What happened.
        cure: What a person can do about it.
    """

    default_cure = "run it again"

    def __init__(self, where: str, reason: str, *, cure: str = "") -> None:
        self.where, self.reason, self.cure = where, reason, cure or self.default_cure
        super().__init__(f"{where}: {reason}; {self.cure}")


class LakeUnavailable(LakeError):
    """The lake cannot be used as it is: missing bucket, no access, disk full, read-only."""

    default_cure = "mend the lake's storage or DATALAKE_LAKE, then run it again"


class UnsafeStore(LakeError):
    """The store accepts conditional writes and ignores their conditions: two writers could lose rows."""

    default_cure = "use a store that enforces If-None-Match and If-Match"


class ObjectNotFound(LakeError):
    """No object under this key."""

    def __init__(self, where: str, reason: str = "no such object", *, cure: str = "") -> None:
        super().__init__(where, reason, cure=cure or "run 'datalake verify'")


class PreconditionFailed(LakeError):
    """A conditional write found another state than the one that it was conditional on."""

    def __init__(self, where: str, reason: str = "changed by another writer", *, cure: str = "") -> None:
        super().__init__(where, reason, cure=cure)


class AmbiguousWrite(LakeError):
    """The answer to a write was lost: it may have been applied, may never be, or may land later."""

    default_cure = "run it again: what was committed is kept, and nothing is doubled"


class TransientStoreError(LakeError):
    """The store is busy or unreachable; the bounded retries are used up."""

    default_cure = "run it again when the store is well: what was committed is kept, and nothing is doubled"


class UploadGone(LakeError):
    """A staged file is gone: somebody published it, or it was swept."""


class CommitConflict(LakeError):
    """Another writer changed the partition in a way that this commit cannot be re-planned on."""


class FolderTaken(LakeError):
    """An adopted folder is kept in order by another feed, or another lake."""

    default_cure = "archive that feed first, or adopt another folder"


class SnapshotExpired(LakeError):
    """A file that the manifest named was removed while it was being read."""

    default_cure = "read again: the manifest now names other files"


class UnreadableFile(LakeError):
    """A file is not Parquet that can be read: truncated, damaged, encrypted, or something else by that name."""

    default_cure = "it was left as it is; restore it from where it came from, or move it away"


class CorruptLake(LakeError):
    """What is stored contradicts itself, or cannot be read."""

    default_cure = "run 'datalake verify' to see what differs; nothing was changed"

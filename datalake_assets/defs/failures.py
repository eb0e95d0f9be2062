"""Our errors as Dagster failures: one line for a person, and the culprit, cause and cure as metadata."""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from datalake_assets.config import Feed
from datalake_assets.errors import (
    AmbiguousWrite,
    CommitConflict,
    DatalakeError,
    IncompleteResponse,
    LakeError,
    SnapshotExpired,
    SourceError,
    SourceUnavailable,
    TransientStoreError,
)

__all__ = ["PASSING", "as_failure", "failures_named"]

#: Errors that may be gone at the next attempt; the others fail the same way however often a run is retried.
PASSING = (
    AmbiguousWrite,
    CommitConflict,
    IncompleteResponse,
    SnapshotExpired,
    SourceUnavailable,
    TransientStoreError,
)


def as_failure(error: DatalakeError, feed: Feed | str) -> dg.Failure:
    """The failure that stands for an error of this package; ``feed`` may be a mere name, of a feed that there isn't."""
    cause, cure = str(error), ""
    if isinstance(error, SourceError):
        cause, cure = f"{error.source}: {error.reason}", error.cure
    elif isinstance(error, LakeError):
        cause, cure = f"{error.where}: {error.reason}", error.cure
    return dg.Failure(
        description=str(error),
        metadata={
            "datalake/feed": feed if isinstance(feed, str) else feed.path,
            "datalake/error": type(error).__name__,
            "datalake/cause": cause,
            "datalake/cure": cure or "correct what it names, then run it again",
        },
        allow_retries=isinstance(error, PASSING),
    )


@contextmanager
def failures_named(feed: Feed | str) -> Iterator[None]:
    """Turns a `DatalakeError` into the `dagster.Failure` of a feed."""
    try:
        yield
    except DatalakeError as error:
        raise as_failure(error, feed) from error

"""What every part of the glue needs of Dagster: its instance, our errors as its failures, its warnings kept quiet.

An error becomes one line for a person, with culprit, cause and cure as metadata. The instance of ``DAGSTER_HOME`` can
be opened for the first time from several processes at once. Warnings that we cause on purpose are silenced where we
cause them and nowhere else.
"""

import fcntl
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from datalake_assets.errors import (
    AmbiguousWrite,
    CommitConflict,
    ConfigError,
    DatalakeError,
    IncompleteResponse,
    LakeError,
    SnapshotExpired,
    SourceError,
    SourceUnavailable,
    TransientStoreError,
)
from datalake_assets.feed import Feed

__all__ = ["PASSING", "as_failure", "failures_named", "known_dagster_warnings_ignored", "open_instance"]

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


_LOCK = ".opening.lock"
#: Dagster's messages list all that it would have taken.
_LONGEST = 300


def open_instance() -> dg.DagsterInstance:
    """Opens the instance, one process at a time; dispose of it, or use it as a context.

    A new SQLite history creates its tables when it is opened, and two processes that do so at once fail with ``table
    alembic_version already exists``. The lock dies with its holder.

    Raises:
        ConfigError: The folder, its ``dagster.yaml`` or its history cannot be used.
    """
    home = os.environ.get("DAGSTER_HOME")
    if not home:
        return dg.DagsterInstance.get()  # says that the variable is missing
    try:
        with (Path(home) / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            return _opened()
    except Exception as error:  # YAML's, SQLAlchemy's and Dagster's own errors have nothing in common
        cause = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        text = cause if len(cause) <= _LONGEST else f"{cause[:_LONGEST]} …"
        raise ConfigError(f"DAGSTER_HOME {home} cannot be used: {text}; mend it, or name another folder") from error


def _opened() -> dg.DagsterInstance:
    instance = dg.DagsterInstance.get()
    # each makes its tables when it is first asked for
    _ = instance.run_storage, instance.event_log_storage, instance.schedule_storage
    return instance


@contextmanager
def known_dagster_warnings_ignored() -> Iterator[None]:
    """Ignores, while the block runs, what Dagster says about features that we have chosen knowing that.

    Beta and preview: backfill policies, partitioned checks, code references, freshness policies. They are pinned by
    `test_upstream_characterization.py`. Deprecated: Dagster 1.13's own initialisation of nested resources reads
    ``InitResourceContext.dagster_run``.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        warnings.simplefilter("ignore", dg.PreviewWarning)
        warnings.filterwarnings("ignore", r"InitResourceContext\.dagster_run is deprecated", DeprecationWarning)
        yield

"""The warnings of Dagster's that we cause on purpose, silenced where we cause them and nowhere else."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

__all__ = ["known_dagster_warnings_ignored"]


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

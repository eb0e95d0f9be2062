"""Dagster, once it has fetched what commands left for it in the lake."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from datalake_assets.defs.resources import Lake
from datalake_assets.defs.runtime import open_instance
from datalake_assets.defs.upkeep.queued_events import report_queued
from datalake_assets.settings import Settings


@contextmanager
def dagster_told(lake: Path) -> Iterator[dg.DagsterInstance]:
    """The instance of ``DAGSTER_HOME``, after a look of its sensor."""
    with open_instance() as instance:
        report_queued(Lake(Settings(lake=str(lake))), instance)
        yield instance

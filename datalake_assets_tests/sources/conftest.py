"""What several suites of sources share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import stamina

from datalake_assets.sources.ksqldb.failures import ATTEMPTS


@pytest.fixture
def no_waits() -> Iterator[None]:
    """Retries are as many as in production, and do not wait."""
    with stamina.set_testing(True, attempts=ATTEMPTS):
        yield

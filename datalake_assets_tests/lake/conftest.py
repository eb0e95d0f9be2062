"""What several suites of the lake share."""

from __future__ import annotations

from pathlib import Path

import pytest

from datalake_assets.lake.store import Store, open_store
from datalake_assets_tests.lake.foreign_folder import ForeignFolder


@pytest.fixture
def folder(store: Store) -> ForeignFolder:
    """An empty folder ``raw/clicks`` beside the lake, on the same kind of store."""
    root = f"{store.uri.rpartition('/')[0]}/raw-{store.uri.rpartition('/')[2]}"
    if "://" not in root:
        Path(root, "clicks").mkdir(parents=True)
    return ForeignFolder(open_store(root, s3_endpoint=store.s3_endpoint), "clicks")

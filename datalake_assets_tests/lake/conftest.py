"""What several suites of the lake share."""

from __future__ import annotations

from pathlib import Path

import pytest

from datalake_assets.lake.store import open_store
from datalake_assets.lake.store import s3 as store_s3
from datalake_assets.lake.store.base import Store
from datalake_assets.lake.store.s3 import S3Store
from datalake_assets_tests.fault_proxy import FaultProxy
from datalake_assets_tests.lake.adopted.adopted_folder import AdoptedFolder
from datalake_assets_tests.lake.s3_faults import behind


@pytest.fixture
def folder(store: Store) -> AdoptedFolder:
    """An empty folder ``raw/clicks`` beside the lake, on the same kind of store."""
    root = f"{store.uri.rpartition('/')[0]}/raw-{store.uri.rpartition('/')[2]}"
    if "://" not in root:
        Path(root, "clicks").mkdir(parents=True)
    return AdoptedFolder(open_store(root, s3=store.s3), "clicks")


@pytest.fixture
def faulty(s3_lake: str, fault_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> S3Store:
    """A lake behind the proxy."""
    monkeypatch.setattr(store_s3, "ATTEMPTS", 3)
    return behind(fault_proxy, s3_lake, timeout_s=20)

"""A local folder and S3 keep the contract of every store."""

from __future__ import annotations

import pytest

from datalake_assets.errors import ConfigError
from datalake_assets.lake.store import open_store
from datalake_assets.lake.store.base import Store
from datalake_assets.testing.staged_files import StagedFileContract
from datalake_assets.testing.stores import StoreContract


class TestLocalObjects(StoreContract):
    @pytest.fixture
    def store(self, local_store: Store) -> Store:
        return local_store


class TestLocalStagedFiles(StagedFileContract):
    @pytest.fixture
    def store(self, local_store: Store) -> Store:
        return local_store


@pytest.mark.s3
class TestS3Objects(StoreContract):
    @pytest.fixture
    def store(self, s3_store: Store) -> Store:
        return s3_store


@pytest.mark.s3
class TestS3StagedFiles(StagedFileContract):
    @pytest.fixture
    def store(self, s3_store: Store) -> Store:
        return s3_store


def test_open_store_refuses_what_cannot_be_a_lake() -> None:
    for uri in ("", "gs://bucket/x", "s3://", "s3://bucket/x?y=1", "s3://bucket/../x"):
        with pytest.raises(ConfigError):
            open_store(uri)


def test_open_store_refuses_credentials_without_showing_them() -> None:
    with pytest.raises(ConfigError) as caught:
        open_store("s3://AKIA:topsecret@bucket/lake")

    assert "topsecret" not in str(caught.value)

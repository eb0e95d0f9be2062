"""A feed of dropped files in a lake of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest

from datalake_assets_tests.sources.files.dropping import Dropping, files_feed


@pytest.fixture(params=["local parquet", pytest.param("s3 parquet", marks=pytest.mark.s3), "local iceberg"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def dropping(place: str, request: pytest.FixtureRequest, tmp_path: Path) -> Dropping:
    store = request.getfixturevalue(f"{place.partition(' ')[0]}_store")
    folder = tmp_path / "drop"
    folder.mkdir()
    return Dropping(store, folder, files_feed(str(folder), kept_as=place.partition(" ")[2]))

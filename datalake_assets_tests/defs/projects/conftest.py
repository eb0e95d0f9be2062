"""A project of a test's own, on a lake of files."""

from pathlib import Path

import dagster as dg
import pytest

from datalake_assets.defs import LakeResource
from datalake_assets.settings import Settings
from datalake_assets_tests.defs.projects.project import Project


@pytest.fixture
def project(tmp_path: Path, instance: dg.DagsterInstance) -> Project:
    (tmp_path / "lake").mkdir()
    lake = LakeResource(settings=Settings(lake=str(tmp_path / "lake")))
    return Project(lake, instance, tmp_path / "raw" / "exports")

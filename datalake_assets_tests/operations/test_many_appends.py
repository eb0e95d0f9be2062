"""With few appends, what ``python -m datalake_assets_tests.operations.many_appends`` does with 500."""

from __future__ import annotations

import pytest

from datalake_assets_tests.operations.many_appends import check_many_appends, in_folder, on_rest
from datalake_assets_tests.operations.shared_catalogs import ready_rest_catalog


def test_appends_become_a_file_a_partition_and_expire_with_their_files_in_a_folder(lake):
    with in_folder(lake) as place:
        assert check_many_appends(place, 34)  # manifests are merged by 32


@pytest.mark.s3
def test_appends_become_a_file_a_partition_and_expire_with_their_files_in_a_rest_catalog(s3_server):
    ready_rest_catalog(s3_server)
    with on_rest(s3_server) as place:
        assert check_many_appends(place, 10)

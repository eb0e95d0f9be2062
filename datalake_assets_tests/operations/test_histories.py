"""A few of the histories that ``python -m datalake_assets_tests.operations.histories`` draws by the hundred."""

from __future__ import annotations

import pytest

from datalake_assets_tests.operations.histories import check_histories
from datalake_assets_tests.operations.shared_catalogs import ready_rest_catalog


def test_history_of_a_table_in_a_folder_reads_as_its_model():
    assert check_histories(4, steps=12).total() > 10


@pytest.mark.s3
def test_history_of_a_table_in_a_rest_catalog_reads_as_its_model(s3_server):
    ready_rest_catalog(s3_server)

    assert check_histories(2, steps=12, server=s3_server).total() > 3

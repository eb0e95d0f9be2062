"""The campaign against the live view in short; ``python -m datalake_assets_tests.live.fuzz`` is the long form."""

from __future__ import annotations

from datalake_assets_tests.live.fuzz import fuzz


def test_no_tile_and_no_parameter_reads_or_writes_a_file(tmp_path):
    met = fuzz(64, 7, tmp_path)
    assert met["refused"] > 10
    assert met["answered harmless"] > 3
    assert met["HTTP 200"] > 5

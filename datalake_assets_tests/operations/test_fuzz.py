"""A lean number of the requests that ``make fuzz`` makes."""

from __future__ import annotations

import resource

from datalake_assets_tests.operations.fuzz import SPOIL, fuzz


def test_malformed_requests_get_typed_errors_and_change_nothing(lake):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    counts, faults = fuzz(200, seed=12, lake=lake)

    assert faults == []
    assert {name.split(" ")[0] for name in counts} == {spoil.__name__.strip("_") for spoil in SPOIL}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10

"""Feeds of a test's own, watched."""

import pytest

from datalake_assets.feed import Feed
from datalake_assets_tests.defs.checks.watched import Watched


@pytest.fixture
def watched(lake, sent, instance):
    def watch(feed: Feed) -> Watched:
        return Watched(lake, sent, instance, feed)

    return watch

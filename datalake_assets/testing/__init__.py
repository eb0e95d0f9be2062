"""Contract suites that others can run on what they made: subclass one in a test module, and give its fixtures.

They need pytest, which this package does not ask for.
"""

import pytest

pytest.register_assert_rewrite("datalake_assets.testing.sources")

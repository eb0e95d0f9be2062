"""Contract suites that others can run on what they made: subclass one in a test module, and give its fixtures.

They need pytest, which this package does not ask for.
"""

import pytest

# so that a failed assertion says what it saw, as in a test of one's own
pytest.register_assert_rewrite(
    *(f"datalake_assets.testing.{name}" for name in ("sources", "staged_files", "stores", "tables"))
)

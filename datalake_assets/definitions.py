"""The Dagster code location; ``workspace.yaml`` points here."""

from stamina import instrumentation

from datalake_assets.defs.build import build_definitions
from datalake_assets.demo.demo_lake import demo_stand_in
from datalake_assets.settings import load_settings

__all__ = ["defs"]

# Dagster brings structlog, and where that is installed stamina prints retries to stdout
instrumentation.set_on_retry_hooks((instrumentation.LoggingOnRetryHook,))

defs = build_definitions(load_settings(), stand_in=demo_stand_in)

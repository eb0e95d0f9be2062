"""The Dagster code location; ``workspace.yaml`` points here."""

from datalake_assets.defs.build import build_definitions
from datalake_assets.demo.demo_lake import demo_stand_in
from datalake_assets.retrying import log_retries
from datalake_assets.settings import load_settings

__all__ = ["defs"]

log_retries()

defs = build_definitions(load_settings(), stand_in=demo_stand_in)

"""The Dagster code location; ``workspace.yaml`` points here."""

from datalake_assets.config import load_settings
from datalake_assets.defs.build import build_definitions

__all__ = ["defs"]

defs = build_definitions(load_settings())

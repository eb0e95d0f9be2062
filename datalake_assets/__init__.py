"""A data lake without small files, as one Dagster code location."""

"""DAGSTER GLUE: assets, IO managers, checks, sensors, schedules and jobs; no rules of its own."""

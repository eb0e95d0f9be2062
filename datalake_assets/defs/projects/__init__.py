"""Checks and a sensor for the assets of other people's Dagster projects, by the rules of our own feeds."""

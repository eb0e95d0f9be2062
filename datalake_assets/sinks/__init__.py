"""Rows that were landed, and alerts about feeds, sent on to systems of others."""

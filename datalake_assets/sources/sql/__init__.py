"""Databases as sources: tables and queries, as snapshots, by windows, or incrementally by a cursor column."""

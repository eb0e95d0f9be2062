"""Folders of Parquet files that others write, kept in order where they lie."""

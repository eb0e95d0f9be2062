"""Adopted folders: Parquet files of other writers, kept in order where they lie."""

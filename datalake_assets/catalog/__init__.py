"""Catalogs of others that feeds are registered in, so that engines find them by name: DuckDB, AWS Glue, Hive."""

"""Iceberg tables: what is committed to them, how they are rewritten, what expires. Only here is pyiceberg imported."""

"""Embedded parts for trying things out: a ksqlDB-compatible server, an S3 server, sample feeds."""

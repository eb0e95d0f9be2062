"""Kinesis Data Streams as a source: the only package that knows it."""

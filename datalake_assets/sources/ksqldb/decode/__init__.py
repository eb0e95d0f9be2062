"""Answers of ksqlDB as Arrow batches, without a Python object per row."""

"""Continuous ingestion: streams that are followed, and committed in batches, for as long as a process runs."""

"""Tests of continuous ingestion."""

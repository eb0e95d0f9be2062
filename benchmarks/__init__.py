"""Benchmarks: `python -m benchmarks NAME`, peers side by side in one run."""

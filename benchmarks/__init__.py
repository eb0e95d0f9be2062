"""BENCHMARKS: figures that the documentation may state, each from a command: ``python -m benchmarks NAME``."""

"""A ksqlDB-compatible server on generated data; imports nothing else of the package."""

"""A backlog of partitions that is cut into runs, on a real run launcher whose workers are killed."""

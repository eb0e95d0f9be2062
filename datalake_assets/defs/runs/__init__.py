"""What Dagster is told of a run besides its job: its process, its end when that process died, its code location."""

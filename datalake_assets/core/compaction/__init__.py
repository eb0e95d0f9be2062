"""What to merge, when, what it saves and why the rest stays: decided from figures alone."""

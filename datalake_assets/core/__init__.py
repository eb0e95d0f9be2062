"""Pure rules: clock, ids and randomness are arguments; no I/O and no vendor."""

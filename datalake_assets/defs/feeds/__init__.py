"""Feeds as assets, of exports and of folders, and what exports them: a command, a schedule, a job."""

"""What Dagster shows of a feed's health: checks of exports, of folders, of expensive rules, and how fresh it is."""

"""All that is known of dropped files: where they lie, how CSV and JSON are read, how they become Arrow."""

"""What the report says of a lake, before anything is drawn."""

"""Resources of dlt as sources: dlt extracts, the lake commits, and the state of the extraction with the rows."""

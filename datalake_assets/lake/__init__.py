"""WRITE: stores, the commit protocol, one module per table format."""

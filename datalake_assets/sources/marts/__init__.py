"""Marts: the lake itself as a source."""

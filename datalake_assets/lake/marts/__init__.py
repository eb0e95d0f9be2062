"""Feeds that are made of other feeds of the lake, by SQL."""

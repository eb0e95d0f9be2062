"""Webhooks as sinks of alerts."""

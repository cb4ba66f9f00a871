"""Inspect and validate recorded episodes."""

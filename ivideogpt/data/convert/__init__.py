"""Shared parts of the converters, and readers of foreign file formats."""

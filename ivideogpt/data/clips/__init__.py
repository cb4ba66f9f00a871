"""Clips of recorded episodes, and loaders of their batches."""

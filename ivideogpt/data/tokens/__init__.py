"""Clips stored as tokens."""

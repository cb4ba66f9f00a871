"""Additions that are not the paper's, each with its reason and numbers."""

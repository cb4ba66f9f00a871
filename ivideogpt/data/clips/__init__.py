"""Clips cut from episodes, and batches of them."""

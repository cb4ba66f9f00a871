"""Recorded episodes in every format that is read directly."""

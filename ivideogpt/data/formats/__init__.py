"""Recorded episodes in every format that is read directly. To add a format, start at :mod:`.registry`."""

"""Score models on clips, one row per clip, and write reports. The metrics are in :mod:`ivideogpt.metrics`."""

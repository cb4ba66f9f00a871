"""Scores of a model on clips, one row a clip, and reports on them. The metrics are in :mod:`ivideogpt.metrics`."""

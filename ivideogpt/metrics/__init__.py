"""Quality of predicted frames: one table of metrics, and the functions behind it."""

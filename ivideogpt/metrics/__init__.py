"""How good frames are: one table of metrics, and the functions behind it."""

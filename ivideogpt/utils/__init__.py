"""Public names of the released code."""

"""Parts that converters share, and readers of foreign files."""

"""What converters share, and readers of foreign files."""

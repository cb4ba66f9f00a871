"""Command lines. Cheap to import: what is heavy is imported inside."""

"""From episodes to batches of clips."""

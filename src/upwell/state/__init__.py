"""Where a publisher keeps its checkpoint, dead letters and requests."""

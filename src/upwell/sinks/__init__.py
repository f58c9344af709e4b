"""Where a publisher sends. One module per kind of destination; none imports another adapter."""

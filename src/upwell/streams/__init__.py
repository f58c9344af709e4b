"""Where a subscriber reads. One module per kind of stream; none imports another adapter."""

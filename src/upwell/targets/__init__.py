"""Where a subscriber applies. One module per kind of database; none imports another adapter."""

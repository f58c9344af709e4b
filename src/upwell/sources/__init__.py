"""Where changes come from. One module per kind of database; none imports another adapter."""

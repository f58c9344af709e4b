"""The doors: the command line and what stands behind its commands."""

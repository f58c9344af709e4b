"""The doors of the cloud side: what AWS calls."""

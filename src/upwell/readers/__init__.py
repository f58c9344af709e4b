"""Stores that the read API reads."""

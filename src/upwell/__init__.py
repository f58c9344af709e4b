"""upwell: event-based data synchronization from an on-premises database to AWS."""

__version__ = "0.1.0"

"""upwell: event-based data synchronization from an on-premises database to AWS."""

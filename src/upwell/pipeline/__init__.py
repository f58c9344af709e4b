"""The flow: source to sink on the publisher, stream to target on the subscriber."""

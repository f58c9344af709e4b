"""The real publisher and applier against a database, a stream and a target that live in memory and fail on purpose."""

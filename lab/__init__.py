"""The lab: real servers on this machine for tests, benchmarks and development. Not part of the package."""

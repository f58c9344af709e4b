"""CloudFormation templates for a pipeline: pure functions from its blueprint to a template."""

"""The demo: a legacy shop, its publishers, the Internet and AWS on one machine, and a view of what travels."""

from upwell.app.demo.play import demo

__all__ = ["demo"]

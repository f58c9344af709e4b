"""The demo: a legacy shop, its publishers, the Internet and AWS on one machine, and a view of what travels."""

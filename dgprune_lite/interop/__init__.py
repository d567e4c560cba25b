"""Bridges to packages that people already use. Each is a file of its own and an optional extra."""

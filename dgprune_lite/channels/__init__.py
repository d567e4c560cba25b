"""Which filters of a network stand and fall together."""

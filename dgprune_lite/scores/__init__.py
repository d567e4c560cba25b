"""What a filter is worth: risks of domains, gates, criteria."""

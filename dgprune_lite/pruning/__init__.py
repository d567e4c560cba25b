"""From scores to a physically smaller network."""

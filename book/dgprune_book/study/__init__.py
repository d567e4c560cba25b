"""The resumable study behind the book's figures: cells, results, statistics."""

"""The book's figures, its explorer and the network in the page."""

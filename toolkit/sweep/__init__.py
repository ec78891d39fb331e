"""``berxit sweep``: a search for training options within a budget."""

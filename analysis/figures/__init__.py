"""Figures: one a file, each a function from results to a matplotlib figure."""

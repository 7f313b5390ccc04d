"""Figures and numbers of the paper, from results."""

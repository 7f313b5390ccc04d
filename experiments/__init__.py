"""Experiments: they train, and write results that `analysis` reads."""
